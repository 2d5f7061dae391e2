"""Beliefs that begin with labels or hold the latest group: numbers worked by hand, and labels that are refused."""

import numpy as np
import pytest

from saerl_lightning.data.planning import make_plan
from saerl_lightning.errors import InputError
from saerl_lightning.online.beliefs.anchored_beta import AnchoredBeta
from saerl_lightning.online.beliefs.interpolated_beta import InterpolatedBeta
from saerl_lightning.online.beliefs.last_rate import LastRate
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.rules.learnability import Learnability
from saerl_lightning.online.selection import Selection
from saerl_lightning.records import Prompt
from tests.online.examples import believed, learn_one


def labelled(*labels: dict[str, float]) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"word {i}", labels=each) for i, each in enumerate(labels)]


def hard(*difficulties: float | None) -> list[Prompt]:
    return labelled(*({} if each is None else {"difficulty": each} for each in difficulties))


def test_an_anchors_rate_is_the_prior():
    """Kappa 4, rate .75: Beta(3.001, 1.001); 2 of 8 right add (2, 6). Without a label the mean rate, .5, is taken."""
    belief = AnchoredBeta()
    prompts = hard(25, 75, None, 100, 0)
    belief.begin(prompts, None)
    assert believed(belief, 0, 2, 3)[0] == pytest.approx([3.001, 1.001])
    assert believed(belief, 2)[0] == pytest.approx([2.001, 2.001])
    assert believed(belief, 3)[0] == pytest.approx([0.001, 4.001])
    learn_one(belief, 0, 2.0)
    assert believed(belief, 0)[0] == pytest.approx([5.001, 7.001])
    assert believed(belief, 1)[0] == pytest.approx([1.001, 3.001])


def test_thinkprior_serves_what_its_anchor_was_unsure_of_first():
    """U of Beta(2, 2) is .4 with G = 2; rates of 1 and 0 hardly vary."""
    belief = AnchoredBeta(edge=1e-9)
    belief.begin(hard(50, 0, 100), None)
    assert belief.believe(np.arange(3), 2)[2] == pytest.approx([0.4, 0, 0], abs=1e-6)


def test_only_the_latest_group_is_believed():
    belief = LastRate()
    belief.begin(hard(0, 0, 0), None)
    for right in (2.0, 6.0):
        learn_one(belief, 1, right)
    learn_one(belief, 2, 8.0)
    assert believed(belief, 0)[0] == [1.0, 1.0]
    assert believed(belief, 1)[0] == pytest.approx([6.0, 2.0])
    assert believed(belief, 2)[0] == pytest.approx([8.0, 0.0], abs=1e-6)


def anchored(*pairs: tuple[float, float]) -> list[Prompt]:
    return labelled(*({"w": weak, "s": strong} for weak, strong in pairs))


def test_evidence_is_forgotten_and_interpolated_as_bots_does():
    """Lambda = rho = .2, G = 8. Rates: p0 .25 and .75, 6 of 8 right, so the policy stands at 1; p1 .25 and .5, so .5."""
    belief = InterpolatedBeta("w", "s", keep=0.8, pseudo=0.2)
    belief.begin(anchored((75, 25), (75, 50), (100, 0)), None)
    learn_one(belief, 0, 6.0)
    seen, unseen, sure = believed(belief, 0, 1, 2)
    assert seen == pytest.approx([7.0, 3.0])  # .8 + .2 + 6, .8 + .2 + 2
    assert unseen == pytest.approx([1.8, 1.8])  # .8 + .2 + .2 * 8 * .5 each
    assert sure == pytest.approx([2.6, 1.0])
    assert belief.metrics() == {"between_anchors": pytest.approx(1.0)}


def test_the_place_between_the_anchors_is_smoothed_and_rates_stay_rates():
    """First 1; then 0 of 8 right stands at (0 - .25) / .5 = -.5, and .9 * 1 - .1 * .5 = .85: .25 + .85 * .5 = .675."""
    belief = InterpolatedBeta("w", "s", keep=0.0, pseudo=1.0, smoothing=0.9)
    belief.begin(anchored((75, 25), (75, 25), (0, 10), (20, 20)), None)
    learn_one(belief, 0, 6.0)
    learn_one(belief, 0, 0.0)
    assert belief.metrics()["between_anchors"] == pytest.approx(0.85)
    assert believed(belief, 1)[0] == pytest.approx([1 + 8 * 0.675, 1 + 8 * 0.325])
    learn_one(belief, 3, 8.0)  # its anchors agree, so the place stays
    assert belief.metrics()["between_anchors"] == pytest.approx(0.85)
    weaker = InterpolatedBeta("w", "s", keep=0.0, pseudo=1.0, smoothing=0.0)
    weaker.begin(anchored((75, 25), (20, 0)), None)
    learn_one(weaker, 0, 8.0)  # 1.5: .8 + 1.5 * .2 = 1.1, which is 1
    assert believed(weaker, 1)[0] == pytest.approx([9.0, 1.0])


def test_prompts_without_an_anchor_learn_from_their_own_groups_alone():
    belief = InterpolatedBeta("w", "s", keep=0.5, pseudo=0.5)
    belief.begin(labelled({"w": 75, "s": 25}, {"w": 50}, {"w": 40, "s": 0}), None)
    learn_one(belief, 1, 6.0)
    assert believed(belief, 0, 1, 2) == [[1.0, 1.0], [7.0, 3.0], [1.0, 1.0]]  # where the policy stands is not known yet
    assert belief.metrics() == {}
    learn_one(belief, 0, 4.0)
    assert believed(belief, 1)[0] == [4.0, 2.0]


@pytest.mark.parametrize(
    ("belief", "prompts", "said"),
    [
        (
            AnchoredBeta(),
            hard(50, None, None),
            r"\.label is 'difficulty', and 2 of 3 prompts lack it \(first: 'p1'",
        ),
        (
            AnchoredBeta("quality"),
            hard(50, 40),
            r"AnchoredBeta\.label is 'quality', but no prompt has it; .* difficulty",
        ),
        (
            AnchoredBeta(),
            hard(50, 120),
            r"AnchoredBeta\.label is 'difficulty', which is 120 for 'p1'; name a label from 0",
        ),
        (InterpolatedBeta("w", "t"), anchored((1, 2)), r"InterpolatedBeta\.strong is 't', but no prompt has it"),
        (InterpolatedBeta("v", "s"), anchored((1, 2)), r"InterpolatedBeta\.weak is 'v', but no prompt has it"),
        (InterpolatedBeta("w", "s"), anchored((1, -2)), r"InterpolatedBeta\.strong is 's', which is -2 for 'p0'"),
    ],
)
def test_labels_that_are_missing_or_no_rate_are_refused(belief, prompts, said):
    operations = {"online": Selection(belief, HighestChance())}
    with pytest.raises(InputError, match=said):
        make_plan(prompts, {}, 1, None, None, operations)


def test_half_of_the_labels_are_enough():
    operation = Selection(AnchoredBeta(), HighestChance())
    plan = make_plan(hard(50, None, 20, None), {}, 1, None, None, {"online": operation})
    assert plan.rows.tolist() == [0, 1, 2, 3]
    a, b = operation.belief.beta(plan.rows)
    assert (a / (a + b))[[0, 2]] == pytest.approx([0.5, 0.8], abs=1e-3)  # as labelled


def test_a_checkpoint_of_another_belief_is_refused():
    one, other = (Selection(belief, HighestChance()) for belief in (PromptBeta(), LastRate()))
    for operation in (one, other):
        make_plan(hard(50, 40), {}, 1, None, None, {"online": operation})
    for now, before, names in ((other, one, ("LastRate", "PromptBeta")), (one, other, ("PromptBeta", "LastRate"))):
        says = r"data\.online\.belief is {}, and the checkpoint was made with {}".format(*names)
        with pytest.raises(InputError, match=says):
            now.load_state_dict(before.state_dict())
    ruled = Selection(PromptBeta(), Learnability())
    make_plan(hard(50, 40), {}, 1, None, None, {"online": ruled})
    with pytest.raises(InputError, match=r"rule is Learnability, and the checkpoint was made with HighestChance"):
        ruled.load_state_dict(one.state_dict())
    assert one.predicts and one.predict(np.array([0]))[0] == pytest.approx([0.5])
