"""What was served: counts, predictions, what waits and why, by hand; and that a checkpoint holds all of it."""

import numpy as np
import pytest
import torch

from saerl_lightning.data.planning import make_plan
from saerl_lightning.data.revision import revise
from saerl_lightning.errors import RunStopped
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.history import Groups, ServedHistory
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.selection import Selection
from saerl_lightning.records import Prompt
from tests.data.served_prompts import outcomes_of_counts as outcomes


def groups(rows, right, varied, graded=8.0) -> Groups:
    count = len(rows)
    return Groups(
        np.array(rows), np.array(right, float), np.full(count, graded), np.full(count, 20.0), np.array(varied)
    )


def test_a_step_is_compared_with_what_was_predicted_of_it():
    """Chances .95 (varied) and .15 (did not): Brier (.0025 + .0225) / 2; rates .5, 1 against .4, .9."""
    history = ServedHistory(4)
    said = history.add(
        groups([2, 0], [4, 8], [True, False]),
        (np.array([0.4, 0.9]), np.array([0.1, 0.2]), np.array([0.95, 0.15])),
    )
    assert said == pytest.approx(
        {
            "pass_rate": 0.75,
            "pass_rate_predicted": 0.65,
            "effective": 0.5,
            "effective_predicted": 0.55,
            "brier": 0.0125,
            "pass_rate_error": 0.1,
            "unseen": 0.5,
        }
    )
    assert history.reliability[9] == pytest.approx([1, 0.95, 1])
    assert history.reliability[1] == pytest.approx([1, 0.15, 0])
    assert history.columns["last_step"].tolist() == [0, -1, 0, -1]
    history.add(groups([2], [2], [True]))
    assert history.columns["groups"].tolist() == [1, 0, 2, 0]
    assert history.columns["right"].tolist() == [8, 0, 6, 0]
    assert history.columns["tokens"].tolist() == [20, 0, 40, 0]
    assert history.columns["chance_predicted"][2] == 0.95  # of the latest prediction
    assert history.steps[0] == pytest.approx((0.65, 0.75, 0.55, 0.5))
    assert history.steps[1][1] == 0.25 and np.isnan(history.steps[1][0])


def admission() -> tuple[Selection, list[Prompt]]:
    operation = Selection(PromptBeta(keep=1.0), Admit(0.6))
    return operation, [Prompt.asking(f"p{i}", f"word {i}") for i in range(6)]


def test_what_waits_is_counted_with_its_reason_and_what_is_served_all_the_same_is_not():
    """Beta(1, 9) of p0 varies with 1 - (9/17) = .47 (G = 8), below .6; unseen prompts with 7/9."""
    operation, prompts = admission()
    plan = make_plan(prompts, {}, 2, None, None, {"online": operation})
    operation.observe(outcomes(["p0", "p1"], [0.0, 4.0]))
    assert revise([operation], plan, plan.rows[:0]).rows.tolist() == [1, 2, 3, 4, 5, 0]
    operation.observe(outcomes(["p1", "p2"], [4.0, 4.0]))
    assert operation.metrics()["waiting"] == 1
    assert operation.history.columns["waits"].tolist() == [1, 0, 0, 0, 0, 0]
    assert operation.history.reasons[int(operation.history.columns["why"][0])] == "chance to vary below 0.6"
    assert revise([operation], plan, np.array([1, 2, 3, 4])).rows.tolist() == [1, 2, 3, 4, 5, 0]
    operation.observe(outcomes(["p5", "p0"], [4.0, 0.0]))
    assert operation.metrics()["waiting"] == 0
    assert operation.history.columns["times_served"].tolist() == [2, 2, 1, 0, 0, 1]
    assert operation.history.columns["waits"].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_checkpoint_holds_what_was_served_and_what_waits(tmp_path):
    operation, prompts = admission()
    plan = make_plan(prompts, {}, 2, None, None, {"online": operation})
    operation.observe(outcomes(["p0", "p1"], [0.0, 4.0]))
    revise([operation], plan, plan.rows[:0])
    torch.save(operation.state_dict(), tmp_path / "state")
    again, _ = admission()
    make_plan(prompts, {}, 2, None, None, {"online": again})
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for each in (operation, again):
        each.observe(outcomes(["p2", "p3"], [3.0, 8.0]))
    assert again.history.columns["waits"][0] == 1
    one, other = operation.state_dict()["history"], again.state_dict()["history"]
    assert one.pop("reasons") == other.pop("reasons") == ["", "chance to vary below 0.6"]
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_groups_without_a_grade_teach_nothing_and_a_reward_above_1_stops():
    operation, prompts = admission()
    make_plan(prompts, {}, 2, None, None, {"online": operation})
    operation.observe(outcomes(["p0", "p1"], [0.0, 0.0], graded=0))
    assert operation.history.columns["groups"].sum() == 0
    assert operation.history.columns["times_served"].tolist() == [1, 1, 0, 0, 0, 0]
    with pytest.raises(RunStopped, match=r"'p1' got 1\.5 on average"):
        operation.observe(outcomes(["p0", "p1"], [0.0, 12.0]))
