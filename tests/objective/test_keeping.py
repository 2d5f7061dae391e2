"""Which completions are kept: numbers worked by hand, and what all choices promise."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import saerl_lightning.objective.keeping
from saerl_lightning.errors import InputError
from saerl_lightning.objective.keeping.gfpo import GFPO
from saerl_lightning.objective.keeping.keep import Keep, KnownCompletions
from saerl_lightning.objective.keeping.pass_rate_band import PassRateBand
from saerl_lightning.objective.keeping.pods import PODS, most_varied
from saerl_lightning.objective.keeping.top_advantages import TopAdvantages
from saerl_lightning.objective.keeping.variance_schedule import VarianceSchedule, variance_share
from tests.shipped_classes import shipped

NAN = torch.nan
CONFIGS = Path(__file__).parents[2] / "configs"
KEEPS = {
    "PassRateBand": PassRateBand(),
    "PODS": PODS(),
    "GFPO": GFPO(3),
    "TopAdvantages": TopAdvantages(),
    "VarianceSchedule": VarianceSchedule(),
}


def test_every_shipped_choice_is_tried_here():
    assert shipped(Keep, saerl_lightning.objective.keeping).keys() == KEEPS.keys()


def test_only_the_choice_by_advantages_waits_for_them():
    assert {name: keep.reads_advantages for name, keep in KEEPS.items()} == {
        **dict.fromkeys(KEEPS, False), "TopAdvantages": True
    }  # fmt: skip


def answers(total, right=None, lengths=None, advantages=None) -> KnownCompletions:
    total = torch.tensor(total)
    given = (total, right, lengths, advantages)
    return KnownCompletions(*(torch.ones_like(total) if each is None else torch.as_tensor(each) for each in given))


def tensors_of(answers: KnownCompletions) -> list[torch.Tensor]:
    return [each for each in vars(answers).values() if isinstance(each, torch.Tensor)]


def kept(keep: Keep, *given, **named) -> list:
    return keep.keep(answers(*given, **named)).int().tolist()


def test_pods_is_the_tables():
    """Of 0, .2, .9, 1: two are 0 and 1 (variance .25), three are 0, .9 and 1 (.202, against .187 of 0, .2 and 1)."""
    assert kept(PODS(2), [[0.0, 0.2, 0.9, 1.0]]) == [[1, 0, 0, 1]]
    assert kept(PODS(3), [[0.2, 1.0, 0.0, 0.9]]) == [[0, 1, 1, 1]]
    assert kept(PODS(), [[0.0, 0.2, 0.9, 1.0]]) == [[1, 0, 0, 1]]
    assert kept(PODS(2), [[NAN, 1.0, NAN, NAN], [0.5, NAN, 0.2, 0.9]]) == [[0, 1, 0, 0], [0, 0, 1, 1]]


def test_pods_finds_the_largest_variance_of_all_subsets():
    random = np.random.default_rng(0)
    for group in [*random.random((40, 7)), *random.integers(0, 2, (20, 7)).astype(float)]:
        for count in (2, 3, 5):
            best = max(np.var(group[list(chosen)]) for chosen in combinations(range(7), count))
            found = most_varied(torch.tensor(group), count).numpy()
            assert found.sum() == count
            assert np.var(group[found]) == pytest.approx(best)


def test_gfpo_keeps_the_shortest_or_the_highest_reward_a_token():
    lengths = [[40.0, 10.0, 20.0, 30.0]]
    assert kept(GFPO(2), [[1.0, 0.0, 1.0, 1.0]], lengths=lengths) == [[0, 1, 1, 0]]
    # 1/40, 0, 1/20, 1/30
    assert kept(GFPO(2, by="efficiency"), [[1.0, 0.0, 1.0, 1.0]], lengths=lengths) == [[0, 0, 1, 1]]
    assert kept(GFPO(2, by="efficiency"), [[0.0, 0.0, 0.0, 0.0]], lengths=lengths) == [[0, 1, 1, 0]]
    assert kept(GFPO(2), [[1.0, NAN, 1.0, NAN]], lengths=lengths) == [[1, 0, 1, 0]]


def test_groups_between_the_bounds_are_kept_and_those_at_them_are_not():
    right = [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, NAN], [NAN, NAN]]
    assert kept(PassRateBand(0.0, 1.0), right, right) == [[0, 0], [0, 0], [1, 1], [0, 0], [0, 0]]
    fifths = torch.tensor([[1.0] + [0.0] * 4, [1.0] * 2 + [0.0] * 3, [1.0] * 4 + [0.0]])
    assert kept(PassRateBand(), fifths.tolist(), fifths) == [[0] * 5, [1] * 5, [0] * 5]


def test_the_top_share_is_of_the_whole_step_and_rounded_up():
    advantages = [[0.1, -2.0, 1.0], [0.0, 0.5, -0.4]]
    assert kept(TopAdvantages(), [[0.0] * 3] * 2, advantages=advantages) == [[0, 1, 1], [0, 1, 0]]
    assert kept(TopAdvantages(0.51), [[0.0] * 3] * 2, advantages=advantages) == [[0, 1, 1], [0, 1, 1]]
    assert kept(TopAdvantages(1.0), [[0.0] * 3] * 2, advantages=advantages) == [[1] * 3] * 2
    # Two of the four that are graded; of equal ones the first completion, then the second ones.
    total, equal = [[0.0, NAN, 0.0], [NAN, 0.0, 0.0]], [[1.0, 9.0, 1.0], [9.0, 1.0, -1.0]]
    assert kept(TopAdvantages(), total, advantages=equal) == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("name", KEEPS)
def test_a_choice_is_pure_and_follows_the_completions_order(name):
    random = torch.Generator().manual_seed(0)
    given = KnownCompletions(*(torch.rand(3, 6, generator=random) for _ in range(4)))
    before = [each.clone() for each in tensors_of(given)]
    found = KEEPS[name].keep(given)
    assert found.dtype == torch.bool and found.shape == (3, 6)
    turned = KEEPS[name].keep(KnownCompletions(*(each.flip(1) for each in tensors_of(given))))
    assert torch.equal(turned.flip(1), found)
    assert torch.equal(KEEPS[name].keep(given), found)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(given), strict=True))


def test_shares_of_the_largest_variance_worked_by_hand():
    """2 of 8: 4 · 2 · 6 / 64; 3 of 8: 4 · 3 · 5 / 64; 2 of 5: 4 · 2 · 3 / 24. Partly graded: 1 of 3: 4 · 1 · 2 / 8."""
    groups = [[1.0] * right + [0.0] * (count - right) + [NAN] * (8 - count) for right, count in
              [(2, 8), (3, 8), (2, 5), (1, 3), (0, 8), (8, 8), (1, 1), (0, 0)]]  # fmt: skip
    assert variance_share(torch.tensor(groups)).tolist() == pytest.approx([0.75, 0.9375, 1, 1, 0, 0, 0, 0], abs=1e-6)
    # .2, .4 and .9: the squares of .3, .1 and .4 sum to .26, of at most 2/3.
    assert variance_share(torch.tensor([[0.2, 0.4, 0.9]])).tolist() == pytest.approx([0.39])


def test_vcrls_threshold_rises_behind_the_twentieth_batch():
    """Of 8: 4k(8 - k)/64 is .4375 for 1 and 7, .75 for 2 and 6, .9375 for 3 and 5. Of 5, 1 and 4 have 16/24."""
    overlay = yaml.safe_load((CONFIGS / "keep/vcrl.yaml").read_text())
    keep = VarianceSchedule(**overlay["model"]["init_args"]["keep"]["init_args"])
    right = torch.tensor([[float(g < k) for g in range(8)] for k in range(9)])
    for batches, left in ((0, [1, 2, 3, 4, 5, 6, 7]), (19, [1, 2, 3, 4, 5, 6, 7]), (20, [3, 4, 5]), (500, [3, 4, 5])):
        known = KnownCompletions(right, right, torch.ones_like(right), torch.zeros_like(right), batches)
        marked = keep.keep(known)
        assert torch.equal(marked.any(1), marked.all(1)) and marked.any(1).nonzero().flatten().tolist() == left
    exact = torch.tensor([[1.0] * 2 + [0.0] * 6])
    assert kept(VarianceSchedule(0.75), exact.tolist(), exact) == [[1] * 8]


def test_a_schedule_that_can_not_work_is_refused():
    with pytest.raises(InputError, match=r"VarianceSchedule\.later is 0\.2, below first 0\.3; write 0\.3 or more"):
        VarianceSchedule(later=0.2)
    with pytest.raises(InputError, match=r"variance of a group, and sampling\.group_size is 1; write"):
        VarianceSchedule().check(1)
    VarianceSchedule().check(2)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (PODS(8), r"PODS keeps 8 of 8 completions \(model\.sampling\.group_size\); write a count from 2"),
        (GFPO(8), r"GFPO keeps 8 of 8 completions \(model\.sampling\.group_size\); write fewer"),
    ],
)
def test_a_count_that_keeps_all_is_refused(keep, says):
    with pytest.raises(InputError, match=says):
        keep.check(8)
    keep.check(9)
    for fits in (PODS(2), PODS()):
        fits.check(4)
    with pytest.raises(InputError, match="PODS keeps half of 3"):
        PODS().check(3)
    with pytest.raises(InputError, match=r"PassRateBand is from 0\.5 to 0\.5; write a high above the low"):
        PassRateBand(0.5, 0.5)
