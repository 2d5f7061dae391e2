"""Steps that keep some completions, or weigh them: worked anew one row after the other, whatever the split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.keeping.gfpo import GFPO
from saerl_lightning.objective.keeping.pass_rate_band import PassRateBand
from saerl_lightning.objective.keeping.pods import PODS
from saerl_lightning.objective.keeping.top_advantages import TopAdvantages
from saerl_lightning.objective.keeping.variance_schedule import VarianceSchedule
from saerl_lightning.objective.reweighting.ar import AR
from saerl_lightning.objective.reweighting.label_weights import LabelWeights
from saerl_lightning.objective.reweighting.per import PER
from saerl_lightning.objective.reweighting.predicted_weights import PredictedWeights
from saerl_lightning.online.adarft import AdaRFT
from saerl_lightning.online.beliefs.anchored_beta import AnchoredBeta
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.selection import Selection
from saerl_lightning.policy.load import Policy
from saerl_lightning.records import Prompt, Sampling
from tests.training.conftest import ParityReward, Sums, data, fit, largest_difference, module, trainer, weights
from tests.training.test_dynamic_sampling import Witness
from tests.training.test_grpo_module import Record
from tests.training.test_ranks import run_on_one_and_two


class Graded(ParityReward):
    """Half a point for an even first token, a tenth for each even token behind it: rewards differ inside a group."""

    def __call__(self, prompts, rollouts):
        even = ((rollouts.tokens % 2 == 0) & rollouts.mask).sum(1).float()
        return 0.5 * super().__call__(prompts, rollouts) + 0.08 * even.view(len(prompts), -1)


class Levels(Sums):
    """Sums with a level."""

    def load(self):
        known = [vars(prompt) for prompt in super().load()]
        return [Prompt(**{**each, "labels": {"level": 1.0 + place % 4}}) for place, each in enumerate(known)]


LOW, HIGH = 0.3, 0.72  # two of the four groups are between them
RAGGED = Sampling(group_size=8, max_tokens=12, seed=3, stop=tuple("abcdefghijklm"))
CASES = {
    "PER": {"reweighting": PER()},
    "AR": {"reweighting": AR()},
    "LabelWeights": {"reweighting": LabelWeights("level")},
    "PODS": {"keep": PODS(3)},
    "GFPO": {"keep": GFPO(5)},
    "PassRateBand": {"keep": PassRateBand(LOW, HIGH)},
    "TopAdvantages": {"keep": TopAdvantages(0.4)},
    "both": {"keep": PODS(), "reweighting": AR()},
    "both by advantages": {"keep": TopAdvantages(), "reweighting": PER()},
}


def stepped(tiny, folder, online=None, **changes):
    record = Record()
    settings = {"rewards": [Graded()], "sampling": RAGGED, "max_grad_norm": None}
    run = fit(
        module(tiny, **{**settings, **changes}), data(train=Levels(), online=online), trainer(folder, 1, (record,))
    )
    return run, record.rows[0]


def kept_by_hand(name: str, step) -> torch.Tensor:
    """Completions that are kept, by sorting in Python."""
    rewards, lengths = step.total.tolist(), step.rollouts.mask.sum(1).view(step.total.shape).tolist()
    kept = torch.ones_like(step.total, dtype=torch.bool)
    if name in ("PODS", "both"):
        for group, values in enumerate(rewards):
            order, count = sorted(range(8), key=lambda i, values=values: values[i]), 3 if name == "PODS" else 4
            choices = [order[:low] + order[8 - count + low :] for low in range(count + 1)]
            spread = [torch.tensor([values[i] for i in each]).double().var(correction=0).item() for each in choices]
            best = next(each for each, s in zip(choices, spread, strict=True) if s > max(spread) - 1e-7)
            kept[group] = torch.tensor([i in best for i in range(8)])
    elif name == "GFPO":
        for group, values in enumerate(lengths):
            kept[group] = torch.tensor(
                [sorted(range(8), key=lambda i, v=values: (v[i], i)).index(i) < 5 for i in range(8)]
            )
    elif name == "PassRateBand":
        kept &= torch.tensor([[LOW < sum(values) / 8 < HIGH] for values in rewards])
    elif name in ("TopAdvantages", "both by advantages"):
        size = step.advantages.abs().flatten().tolist()
        order = sorted(range(32), key=lambda i: (-round(size[i], 6), i % 8, step.batch.rows[i // 8]))
        count = 13 if name == "TopAdvantages" else 16
        kept = torch.tensor([order.index(i) < count for i in range(32)]).view(4, 8)
    return kept


def advantages_by_hand(rewards: torch.Tensor, kept: torch.Tensor, among_kept: bool) -> torch.Tensor:
    found = torch.zeros_like(rewards)
    for group in range(len(rewards)):
        chosen = kept[group] if among_kept else torch.ones_like(kept[group])
        values = rewards[group][chosen]
        if len(values) > 1:
            found[group] = (rewards[group] - values.mean()) / (values.std() + 1e-4)
    return found * kept


def weights_by_hand(name: str, step, kept, advantages, logprobs) -> torch.Tensor:
    """A weight a token, (R, T)."""
    own = (step.rollouts.mask & kept.flatten()[:, None]).float()
    weight = torch.ones_like(logprobs)
    if name in ("PER", "both by advantages"):
        raw = advantages.abs().flatten().sqrt()
        weight = (raw / raw[kept.flatten()].mean())[:, None].expand(own.shape)
    if name in ("AR", "both"):
        raw = 0.5 * logprobs.exp() + 0.5
        weight = raw / ((raw * own).sum() / own.sum())
    if name == "LabelWeights":
        levels = torch.tensor([prompt.labels["level"] for prompt in step.batch.prompts])
        weight = (levels / levels.mean()).repeat_interleave(8)[:, None].expand(own.shape)
    return weight


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("objective", [GRPO(), DAPO()], ids=["rows", "tokens"])
def test_a_step_is_the_one_worked_anew(tiny, tmp_path, name, objective):
    """SGD of rate .5 on the gradient of - sum w A log pi, over all 32 rows at once, with padding."""
    run, logged = stepped(tiny, tmp_path, objective=objective, **CASES[name])
    step, model = run.last_step, Policy(tiny).load_model()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    rows = step.rollouts
    assert len(set(rows.lengths.tolist())) > 4
    logits = model(
        rows.tokens, attention_mask=(torch.arange(rows.tokens.shape[1])[None] < rows.lengths[:, None])
    ).logits
    logprobs = torch.zeros(rows.tokens.shape)
    logprobs[:, 1:] = logits[:, :-1].float().log_softmax(-1).gather(2, rows.tokens[:, 1:, None])[..., 0]
    kept = kept_by_hand(name, step)
    assert name in ("PER", "AR", "LabelWeights") or 0 < kept.sum() < 32
    advantages = advantages_by_hand(step.total, kept, "dvantages" not in name)
    own = (rows.mask & kept.flatten()[:, None]).float()
    gain = (
        weights_by_hand(name, step, kept, advantages, logprobs.detach())
        * advantages.flatten()[:, None]
        * logprobs
        * own
    )
    by_row = isinstance(objective, GRPO)
    loss = -(gain.sum(1) / own.sum(1).clamp(min=1)).sum() / kept.sum() if by_row else -gain.sum() / own.sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert largest_difference(model.state_dict(), start) > 1e-3
    assert largest_difference(weights(run), model.state_dict()) < 2e-6
    assert logged.get("rollouts/kept_frac", 1.0) == pytest.approx(kept.float().mean().item())
    assert logged["rollouts/scored_frac"] <= kept.float().mean().item()
    assert ("policy/weight/max" in logged) == ("reweighting" in CASES[name])
    if "policy/weight/max" in logged:
        assert logged["policy/weight/min"] < 1 < logged["policy/weight/max"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_for_any_split_and_without_shortcuts(tiny, tmp_path, name):
    whole = weights(stepped(tiny, tmp_path, **CASES[name])[0])
    plain = weights(stepped(tiny, tmp_path)[0])
    assert largest_difference(whole, plain) > 1e-4
    for changes in ({"micro_tokens": 260}, {"shortcuts": "none"}, {"shortcuts": "none", "micro_tokens": 120}):
        assert largest_difference(weights(stepped(tiny, tmp_path, **CASES[name], **changes)[0]), whole) < 2e-6


def by_belief() -> Selection:
    """Levels 1 to 4 of 100: with four answers that count, p = 1 - (4 level/100 + .001)/4.002."""
    return Selection(AnchoredBeta("level"), Admit(0.0))


def test_a_belief_weighs_as_the_same_numbers_in_a_label_do(tiny, tmp_path):
    """The weight of a label is worked anew above. Levels are 1 to 4, so 1 - p goes with 4 level + .1."""

    class Hard(Levels):
        def load(self):
            known = [vars(prompt) for prompt in super().load()]
            return [Prompt(**{**each, "labels": {"hard": 4 * each["labels"]["level"] + 0.1}}) for each in known]

    believed = weights(stepped(tiny, tmp_path, by_belief(), reweighting=PredictedWeights("difficulty"))[0])
    told = {"rewards": [Graded()], "sampling": RAGGED, "max_grad_norm": None, "reweighting": LabelWeights("hard")}
    labelled = fit(module(tiny, **told), data(train=Hard()), trainer(tmp_path, 1))
    plain = weights(stepped(tiny, tmp_path, by_belief())[0])
    assert largest_difference(believed, weights(labelled)) < 2e-6 < 1e-4 < largest_difference(believed, plain)


def test_what_is_predicted_is_of_before_the_step(tiny, tmp_path):
    """All prompts are as unknown at first, and weigh alike; prompts served again differ by what the first step said."""
    record, online = Record(), Selection(PromptBeta(), Nearest(thompson=False), repeats=True)
    settings = {"rewards": [Graded()], "sampling": RAGGED, "reweighting": PredictedWeights("difficulty")}
    fit(module(tiny, **settings), data(train=Levels(4), online=online, batch_size=4), trainer(tmp_path, 2, (record,)))
    first, second = record.rows[:2]
    assert first["policy/weight/min"] == first["policy/weight/max"] == 1
    assert second["policy/weight/min"] < 1 < second["policy/weight/max"]


def test_a_step_that_keeps_nothing_moves_nothing(tiny, tmp_path):
    run, logged = stepped(tiny, tmp_path, keep=PassRateBand(0.99, 1.0))
    assert largest_difference(weights(run), Policy(tiny).load_model().state_dict()) == 0
    assert logged["rollouts/kept_frac"] == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reweighting": AR(), "objective": GSPO()}, "AR weighs tokens, and the loss of GSPO weighs rows"),
        ({"keep": PODS(8)}, "PODS keeps 8 of 8 completions"),
        (
            {"reweighting": AR(), "guard": None, "sampling": Sampling(top_p=0.9)},
            "top_p 0.9.*no reweighting of tokens",
        ),
        ({"reweighting": LabelWeights("quality")}, r"label is 'quality', but no prompt has it; labels present: level"),
        (
            {"reweighting": PredictedWeights()},
            r"PredictedWeights reads predicted pass rates, and data\.online is null; give -c online/mopps\.yaml",
        ),
        (
            {"reweighting": PredictedWeights(), "online": AdaRFT("level")},
            r"and data\.online is AdaRFT, which predicts none; give -c online",
        ),
        ({"keep": True}, r"GRPOModule\.keep is True; write a Keep, as keep=PODS\(\)"),
        ({"reweighting": "PER"}, r"GRPOModule\.reweighting is 'PER'; write a Reweighting, as reweighting=PER\(\)"),
    ],
)
def test_what_can_not_be_is_refused(tiny, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        stepped(tiny, tmp_path, **changes)


@pytest.mark.slow
def test_two_processes_keep_weigh_and_mix_as_one(tiny, tmp_path):
    run_on_one_and_two(Path(__file__).with_name("choices_ranks.py"), tiny, tmp_path)
    start = Policy(tiny).load_model().state_dict()
    for name in ("advantages", "tokens", "predicted"):
        one, two = (torch.load(tmp_path / f"{name}-{ranks}.pt", weights_only=True) for ranks in (1, 2))
        assert largest_difference(one, two) < 2e-6 < 1e-3 < largest_difference(one, start), name
        (alone, rows), (shared, others) = (
            json.loads((tmp_path / f"{name}-{ranks}.json").read_text()) for ranks in (1, 2)
        )
        assert rows == others
        assert rows != list(range(20))
        for first, second in zip(alone, shared, strict=True):
            for key, value in first.items():
                if key.startswith(("data/", "policy/weight", "rollouts/kept", "loss")):
                    assert second[key] == pytest.approx(value, abs=2e-5), (name, key)
        assert "data/online/share/plus_3" in alone[0]


def test_a_threshold_rises_at_its_batch_also_in_a_resumed_run(tiny, tmp_path):
    """Two updates a batch: the first three batches keep all, the others the groups with four of eight right."""
    half = VarianceSchedule(first=0.0, later=1.0, batches=3)

    def run(folder: str, ckpt_path: Path | None = None):
        (tmp_path / folder).mkdir()
        witness, record = Witness(tmp_path / folder), Record()
        made = module(tiny, keep=half, updates_per_batch=2, sampling=Sampling(group_size=8, max_tokens=6, seed=3))
        ran = fit(made, data(), trainer(tmp_path, 10, (witness, record)), ckpt_path=ckpt_path)
        return ran, witness.steps, [row["rollouts/kept_frac"] for row in record.rows]

    whole, steps, shares = run("whole")
    by_hand = [float((step.total.sum(1) == 4).double().mean()) for step in steps]
    assert (
        shares[:3] == [1, 1, 1] and shares[3:] == pytest.approx(by_hand[3:]) and max(shares[3:]) > 0 < len(shares[3:])
    )
    assert min(shares[3:]) < 1 and len(shares) == 5
    for done in (2, 4):
        resumed, _, again = run(f"from-{done}", tmp_path / "whole" / f"{2 * done}.ckpt")
        assert again == shares[done:] and largest_difference(weights(whole), weights(resumed)) == 0
