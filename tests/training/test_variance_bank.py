"""VarianceBank: which prompts come again, in whose places and how often, worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from saerl_lightning.objective.keeping.variance_schedule import VarianceSchedule
from saerl_lightning.training.rounds.variance_bank import VarianceBank, counted_share
from tests.training.test_rounds import NAN, Desk, batch_of, outcomes


def filled(bank: VarianceBank, rows: list[int], patterns: dict[int, str]) -> tuple[Desk, list[int]]:
    """One step of groups of 8, whose outcomes are observed; the desk, and the rows that are trained on."""
    desk = Desk(patterns, group_size=8)
    generated, trained = bank.fill(batch_of(rows), desk.source)
    bank.observe(generated.outcomes)
    return desk, trained.batch.rows if trained.in_loss.any() else []


def test_dropped_groups_give_their_places_to_the_banks_best_prompts_twice_at_most():
    """Of 8: 1 right is .4375, 2 are .75, 3 are .9375, 4 are 1; the threshold is .4, then .8 from the third batch on."""
    k = {n: "1" * n + "0" * (8 - n) for n in range(9)}
    bank = VarianceBank(VarianceSchedule(0.4, 0.8, batches=2), momentum=0.9, replays=2)
    desk, trained = filled(bank, [0, 1, 2, 3], {0: k[4], 1: k[0], 2: k[2], 3: k[1]})
    assert trained == [0, 2, 3] and len(desk.log) == 1  # the bank is empty, so the step is smaller
    assert bank.state_dict()["bank"] == {"p0": [1.0, 0, 0], "p2": [0.75, 0, 2], "p3": [0.4375, 0, 3]}
    # 4 and 5 are dropped: 0 is in the step itself, so 2 and 3 come, at the places of 4 and 5.
    desk, trained = filled(bank, [4, 0, 5], {4: k[8], 0: k[3], 5: k[0], 2: k[4], 3: k[0]})
    assert desk.log[1] == (1, 8, [2, 3], [0, 2]) and trained == [0, 2, 3]
    found = bank.state_dict()["bank"]
    assert found["p0"] == [pytest.approx(0.9 + 0.1 * 0.9375), 0, 0]
    assert found["p2"] == [pytest.approx(0.9 * 0.75 + 0.1), 1, 2] and found["p3"] == [pytest.approx(0.39375), 1, 3]
    # Now .75 is too little. 0 and 2 come; 2 leaves the bank after its second replay, 0 stays.
    desk, trained = filled(bank, [6, 7], {6: k[2], 7: k[2], 0: k[4], 2: k[4]})
    assert desk.log[1][2:] == ([0, 2], [0, 1]) and trained == [0, 2]
    assert {uid: entry[1:] for uid, entry in bank.state_dict()["bank"].items()} == {"p0": [1, 0], "p3": [1, 3]}
    assert bank.state_dict()["batches"] == 3
    # 3's priority is the lowest, and there is room: both come a second time and leave.
    assert filled(bank, [6, 7, 8], dict.fromkeys(range(9), k[8]))[1] == [0, 3] and bank.state_dict()["bank"] == {}
    assert filled(bank, [6, 7], dict.fromkeys(range(9), k[8]))[1] == []


def test_vcrls_overlay_has_the_numbers_of_its_sources():
    overlay = yaml.safe_load((Path(__file__).parents[2] / "configs/rounds/vcrl.yaml").read_text())
    given = overlay["model"]["init_args"]["dynamic_sampling"]["init_args"]
    bank, drop = VarianceBank(), given["drop"]["init_args"]
    assert (given["momentum"], given["replays"]) == (bank.momentum, bank.replays) == (0.9, 2)
    assert vars(bank.drop) == drop == {"first": 0.3, "later": 0.8, "batches": 20}


def test_a_banks_shares_are_those_of_counts_and_ungraded_prompts_change_nothing():
    assert [counted_share(k, n) for k, n in ((2, 8), (3, 8), (2, 5), (1, 3), (9, 8), (0, 8), (1, 1), (0, 0))] == [
        0.75, 0.9375, 1, 1, 0, 0, 0, 0
    ]  # fmt: skip
    bank = VarianceBank()
    bank.load_state_dict({"batches": 7, "bank": {"p0": [0.5, 1, 0]}})
    bank.observe(outcomes({"p0": NAN}))
    assert bank.state_dict() == {"batches": 8, "bank": {"p0": [0.5, 1, 0]}}
    bank.load_state_dict({})
    assert bank.state_dict() == {"batches": 0, "bank": {}}
