"""What every shipped objective promises the step, with every term that it can be given."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

import saerl_lightning.objective
from saerl_lightning.objective.bnpo import BNPO
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.policy_gradient import Clipped
from saerl_lightning.objective.reinforce_pp import ReinforcePP
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection

NAN = float("nan")


def shipped() -> list[type]:
    modules = pkgutil.iter_modules(saerl_lightning.objective.__path__, "saerl_lightning.objective.")
    classes = [
        each for m in modules for _, each in inspect.getmembers(importlib.import_module(m.name), inspect.isclass)
    ]
    final = {each for each in classes if issubclass(each, Objective) and not inspect.isabstract(each)}
    return sorted(final, key=lambda each: each.__name__)


SHIPPED = shipped()
TERMS = {
    "plain": {},
    **{f"kl {e}": {"kl": KLPenalty(0.1, e)} for e in ("k1", "k2", "k3")},
    "kl in the reward": {"kl": KLPenalty(0.1, "k1", "reward")},
    **{
        f"{level} {mode}": {"correction": SamplerCorrection(level, mode, cap=1.5, floor=0.7)}
        for level in ("token", "sequence")
        for mode in ("truncate", "mask")
    },
    "entropy bonus": {"entropy": EntropyTerm(bonus=0.1)},
    "top entropy": {"entropy": EntropyTerm(top_share=0.4)},
    "dual clip": {"dual_clip": 1.5},
    "all": {"kl": KLPenalty(0.1), "correction": SamplerCorrection(cap=1.5), "entropy": EntropyTerm(bonus=0.1)},
}


def accepts(kind: type, terms: dict) -> bool:
    sequence_ratio = kind.__name__ in ("GSPO", "RLOO")
    clipped = issubclass(kind, Clipped)
    return (clipped or "dual_clip" not in terms) and not (
        sequence_ratio and "entropy" in terms and terms["entropy"].top_share < 1
    )


MADE = {
    f"{kind.__name__}, {name}": kind(**terms)
    for kind in SHIPPED
    for name, terms in TERMS.items()
    if accepts(kind, terms)
}
EVERY = pytest.mark.parametrize("objective", MADE.values(), ids=MADE.keys())
VARIANTS = [*(kind() for kind in SHIPPED), BNPO(beta_normalised=True), ReinforcePP("group")]
VARIANT = pytest.mark.parametrize(
    "objective", VARIANTS, ids=lambda made: f"{type(made).__name__}{vars(made).get('baseline', '')}"
)


def gradient_of(loss, step):
    """With respect to log-probabilities and entropies, one below the other."""
    found = torch.autograd.grad(loss, [step.logprobs, step.entropy], allow_unused=True)
    return torch.cat([torch.zeros_like(step.logprobs) if each is None else each for each in found])  # (2 R, T)


def gradient(objective, step):
    return gradient_of(objective(step)[0], step)


def test_all_shipped_objectives_are_tested():
    names = ["BNPO", "CISPO", "DAPO", "DrGRPO", "GRPO", "GSPO", "RLOO", "ReinforcePP"]
    assert sorted(names) == sorted(kind.__name__ for kind in SHIPPED)
    assert len(MADE) > 90


@EVERY
def test_any_split_has_the_same_gradient_and_metrics(objective, make_step, micro_batch):
    step = make_step()
    whole, (loss, metrics) = gradient(objective, step), objective(step)
    assert whole.abs().max() > 1e-3
    for splits in (2, 4, 8):
        parts = [micro_batch(step, rows) for rows in torch.arange(8).chunk(splits)]
        results = [objective(part) for part in parts]
        total = sum(result[0] for result in results)
        torch.testing.assert_close(gradient_of(total, step), whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(total, loss, rtol=0, atol=1e-6)
        for name, value in metrics.items():
            combine = min if name.endswith("/min") else max if name.endswith("/max") else sum
            torch.testing.assert_close(torch.as_tensor(combine(r[1][name] for r in results)), value, msg=name)


@EVERY
@pytest.mark.parametrize("columns", [1, 7])
def test_padding_changes_neither_loss_nor_gradient(objective, columns, make_step, micro_batch):
    """More padding, and anything finite in it, changes neither loss nor metrics nor the tokens' gradient."""
    step = make_step()
    garbage = torch.randn(8, 6 + columns, dtype=torch.float64)
    wider = {
        name: torch.where(pad(step.mask, (0, columns)), pad(getattr(step, name).detach(), (0, columns)), garbage)
        for name in ("logprobs", "old_logprobs", "sampler_logprobs", "entropy", "reference")
    }
    wider["logprobs"].requires_grad_()
    wider["entropy"].requires_grad_()
    padded = replace(step, **wider, mask=pad(step.mask, (0, columns)))
    torch.testing.assert_close(objective(padded), objective(step))
    expected = gradient(objective, step)
    torch.testing.assert_close(gradient(objective, padded), pad(expected, (0, columns)))


@EVERY
@pytest.mark.parametrize("column", [0, 3])
def test_tokens_that_the_policy_did_not_write_change_nothing(objective, column, make_step):
    """Two columns that the policy did not write, with anything in them, before or amid its tokens."""
    step = make_step()

    def widened(values, filling):
        return torch.cat([values[:, :column], filling, values[:, column:]], 1)

    names = ("logprobs", "old_logprobs", "sampler_logprobs", "entropy", "reference")
    wider = {name: widened(getattr(step, name).detach(), torch.randn(8, 2).double()) for name in names}
    wider["logprobs"].requires_grad_()
    wider["entropy"].requires_grad_()
    gapped = replace(step, **wider, mask=widened(step.mask, torch.zeros(8, 2, dtype=torch.bool)))
    torch.testing.assert_close(objective(gapped), objective(step))
    expected = gradient(objective, step)
    torch.testing.assert_close(gradient(objective, gapped), widened(expected, torch.zeros(16, 2).double()))


@EVERY
def test_rows_without_advantage_have_no_gradient_where_they_are_skipped(objective, make_step):
    step = make_step()
    step = replace(step, advantages=step.advantages * torch.tensor([0, 1] * 4))
    idle = gradient(objective, step)[(step.advantages == 0).repeat(2)]
    assert objective.skips_zero_advantage == bool(idle.eq(0).all())


@EVERY
def test_an_objective_reads_just_what_its_properties_name(objective, make_step):
    """Entropy gets a gradient, the reference and the sampler have a say, just where the properties tell so."""
    step = make_step()
    grad = gradient(objective, step)
    assert objective.entropy_gradient == bool(grad[8:].ne(0).any())
    if not objective.needs_reference:
        torch.testing.assert_close(gradient(objective, replace(step, reference=None)), grad)
    other = replace(step, sampler_logprobs=step.sampler_logprobs + 0.3)
    assert objective.corrects_sampler == bool((gradient(objective, other) - grad).abs().max() > 1e-9)
    low = replace(step, entropy_floor=-1.0)
    assert (objective.top_entropy < 1) == bool((gradient(objective, low) - grad).abs().max() > 1e-9)


@EVERY
def test_no_row_is_no_loss(objective, make_step):
    """A micro-batch whose graders all failed: an empty mask, no gradient, metrics that change no sum and no minimum."""
    step = make_step()
    empty = replace(step, mask=torch.zeros_like(step.mask))
    loss, metrics = objective(empty)
    assert loss.item() == 0
    assert gradient(objective, empty).eq(0).all()
    neutral = {"policy/ratio/min": torch.inf, "policy/ratio/max": -torch.inf}
    assert all(value.item() == neutral.get(name, 0.0) for name, value in metrics.items())


@EVERY
def test_metrics_are_of_what_is_scored(objective, make_step):
    """Half of the step's tokens skipped: sums are divided by those that are there."""
    step = make_step()
    _, all_scored = objective(step)
    _, half = objective(replace(step, step_tokens=2 * step.step_tokens, step_rows=16.0))
    torch.testing.assert_close(half, all_scored)
    assert {"policy/clip_low_frac", "policy/clip_high_frac", "policy/ratio_mean", "policy/ratio/min"} <= half.keys()
    assert objective.corrects_sampler == ({"policy/correction_mean", "policy/correction_capped_frac"} <= half.keys())


@VARIANT
def test_failed_graders_change_no_other_advantage(objective):
    """NaN gets 0, and the others get what they would without it; a group without variance gets exactly 0."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1] * 4, [1.0, 0.0, 0.0, 0.0]])
    with_nan = torch.cat([rewards, torch.full((3, 2), NAN)], 1)
    expected = objective.advantages(rewards)
    advantages = objective.advantages(with_nan)
    torch.testing.assert_close(advantages[:, :4], expected)
    assert advantages[:, 4:].eq(0).all()
    assert objective.advantages(torch.full((2, 3), NAN)).eq(0).all()
    assert objective.advantages(torch.full((2, 3), 0.3)).eq(0).all()
    if vars(objective).get("baseline") != "none":
        assert expected[1].eq(0).all()
        assert objective.advantages(torch.tensor([[1.0, NAN], [0.0, 1.0]]))[0].eq(0).all()


@VARIANT
def test_better_rewards_get_better_advantages(objective):
    rewards = torch.tensor([[1.0, 0.5, 0.0, 0.25], [0.0, 1.0, 0.0, 0.0]])
    a = objective.advantages(rewards)
    for group, values in zip(rewards, a, strict=True):
        assert (values[:, None] > values[None]).eq(group[:, None] > group[None]).all()
