"""Gaps: tokens of a completion that the policy did not write are seen, but neither scored nor trained on.

The other side is plain: one row at a time through the model's own forward, log-softmax, and the loss as its paper says it,
over lists of the policy's tokens.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saerl_lightning.errors import InputError
from saerl_lightning.objective.bnpo import BNPO
from saerl_lightning.objective.cispo import CISPO
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.dr_grpo import DrGRPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.reinforce_pp import ReinforcePP
from saerl_lightning.objective.rloo import RLOO
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty
from saerl_lightning.policy.logprobs import score
from saerl_lightning.policy.scoring import Scorer
from saerl_lightning.records import Rollouts
from saerl_lightning.reward.length import LengthReward
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.grading import score_step
from saerl_lightning.training.guard import MismatchGuard
from saerl_lightning.training.metrics import Completions
from saerl_lightning.training.rows import Cut, StepRows
from tests.policy.test_logprobs import make
from tests.policy.test_scoring import WAYS
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights
from tests.training.test_grpo_module import Record

CPU, MAX_TOKENS = torch.device("cpu"), 9
PROMPTS = [[5, 9, 11, 3], [7, 2]]
# Letters are the policy's, dots a gap's: one in the middle, two, none, one at the end, one at the beginning, all of it.
SHAPES = ["aa...aa", "a..aa.a", "aaaa", "aa..", "..aaa", "...."]
OWN = [[letter == "a" for letter in shape] for shape in SHAPES]
ADVANTAGES = torch.tensor([[1.0, -0.5, 0.7], [-1.2, 0.4, 2.0]])


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(1)
    completions = [torch.randint(0, 97, (len(shape),), generator=generator).tolist() for shape in SHAPES]
    garbage = [[-1.0 if own else float("nan") for own in row] for row in OWN]
    return Rollouts.pack(PROMPTS, completions, garbage, [False] * 6, list(SHAPES), 3, version=0, own=OWN)


@pytest.fixture
def llama():
    return make(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=False).train()


def plain(model, rows: Rollouts) -> list[SimpleNamespace]:
    """Each row alone, without padding: log-probabilities and entropies of the policy's tokens, in order."""
    found = []
    for r, length in enumerate(rows.lengths.tolist()):
        logp = model(rows.tokens[r : r + 1, :length]).logits[0].log_softmax(-1)  # (length, V)
        places = [t for t in range(length) if bool(rows.own[r, t])]
        given = torch.stack([logp[t - 1, rows.tokens[r, t]] for t in places]) if places else logp.new_zeros(0)
        entropy = torch.stack([-(logp[t - 1].exp() * logp[t - 1]).sum() for t in places]) if places else given
        found.append(SimpleNamespace(logp=given, entropy=entropy, places=places))
    return found


def gradient(model, loss) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("way", [*WAYS, "neither"])
def test_all_scorers_give_the_policys_tokens_what_a_plain_forward_gives_them(llama, way):
    rows = rollouts()
    scorer = Scorer(**WAYS.get(way, {})).suited(llama, 11)
    logprobs, entropy = scorer(llama, rows.tokens, rows.mask, torch.tensor([0, 0, 0, 1, 1, 1]), rows.own)
    assert logprobs[~rows.own].eq(0).all() and entropy[~rows.own].eq(0).all()
    for r, row in enumerate(plain(llama, rows)):
        torch.testing.assert_close(logprobs[r, row.places], row.logp, atol=2e-5, rtol=0)
        torch.testing.assert_close(entropy[r, row.places], row.entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("way", [*WAYS, "neither"])
def test_a_gap_is_seen_by_what_follows_it_alone(llama, way):
    """Another word in the first gap of row 0, at column 6: the tokens behind it change, all others stay."""
    rows, scorer = rollouts(), Scorer(**WAYS.get(way, {}))
    other = rows.tokens.clone()
    other[0, 6] += 1
    prompts = torch.tensor([0, 0, 0, 1, 1, 1])
    before, after = (scorer(llama, tokens, rows.mask, prompts, rows.own)[0] for tokens in (rows.tokens, other))
    moved = (before - after).abs() > 1e-4
    assert moved.nonzero().tolist() == [[0, 9], [0, 10]]


# -- losses, as their papers say them ----------------------------------------------------------------------------------


def clip(ratio, a, low, high):
    return torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def per_token(low, high):
    return lambda row: clip((row.logp - row.old).exp(), row.a, low, high)


def gspo(row):
    return clip((row.logp - row.old).mean().exp(), row.a, 3e-4, 4e-4).reshape(1)


def rloo(row):
    return clip((row.logp - row.old).sum().exp(), row.a, 0.2, 0.2).reshape(1)


def cispo(row):
    return (row.logp - row.old).exp().detach().clamp(0, 5) * row.a * row.logp


def kl_k3(row):
    delta = row.reference - row.logp
    return per_token(0.2, 0.2)(row) - 0.3 * (delta.exp() - 1 - delta)


ROW_MEAN = lambda parts: sum(part.mean() for part in parts) / len(parts)  # noqa: E731
TOKEN_MEAN = lambda parts: torch.cat(parts).mean()  # noqa: E731
CONSTANT = lambda parts: torch.cat(parts).sum() / (len(parts) * MAX_TOKENS)  # noqa: E731
LOSSES = {
    "GRPO": (GRPO(), per_token(0.2, 0.2), ROW_MEAN),
    "GRPO with KL": (GRPO(kl=KLPenalty(0.3)), kl_k3, ROW_MEAN),
    "DAPO": (DAPO(), per_token(0.2, 0.28), TOKEN_MEAN),
    "DrGRPO": (DrGRPO(), per_token(0.2, 0.2), CONSTANT),
    "BNPO": (BNPO(), per_token(0.2, 0.2), TOKEN_MEAN),
    "ReinforcePP": (ReinforcePP(), per_token(0.2, 0.2), TOKEN_MEAN),
    "CISPO": (CISPO(), cispo, TOKEN_MEAN),
    "GSPO": (GSPO(), gspo, ROW_MEAN),
    "RLOO": (RLOO(), rloo, ROW_MEAN),
    "entropy": (
        DAPO(entropy=EntropyTerm(bonus=0.1)),
        lambda row: per_token(0.2, 0.28)(row) + 0.1 * row.entropy,
        TOKEN_MEAN,
    ),
}


def laid_out(rows: Rollouts) -> StepRows:
    """Off-policy rows of three groups, whose gaps hold garbage in every array."""
    generator = torch.Generator().manual_seed(2)
    step = StepRows.from_rollouts(rows, torch.ones(6, dtype=torch.bool), MAX_TOKENS, CPU)
    old, reference = (-4.5 + 0.3 * torch.randn(rows.tokens.shape, generator=generator) for _ in range(2))
    return step.with_old(old).with_reference(reference).with_advantages(ADVANTAGES, False, lambda counts: counts)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cut", [Cut(100, packed=True), Cut(22, packed=True), Cut(25)], ids=str)
def test_the_gradient_is_that_of_the_policys_tokens(llama, name, cut):
    objective, gain, aggregate = LOSSES[name]
    rows = rollouts()
    step = laid_out(rows)
    scorer = Scorer(shared_prefix=cut.packed, tiled_head=cut.packed, entropy_gradient=objective.entropy_gradient)
    parts = [step.of_rows(positions) for positions in step.micro_batches(cut)]
    assert (len(parts) > 1) == (cut.budget < 100)
    losses = [objective(p.inputs(*scorer(llama, p.tokens, p.completion, p.prompts, p.own)))[0] for p in parts]
    ours, loss = gradient(llama, sum(losses)), sum(losses).item()
    wrote = plain(llama, rows)[:5]  # the last row has no token of the policy, and counts nowhere
    for r, row in enumerate(wrote):
        row.a, row.old, row.reference = (
            ADVANTAGES.flatten()[r],
            step.old_logprobs[r, row.places],
            step.reference[r, row.places],
        )
    expected = -aggregate([gain(row) for row in wrote])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    theirs = gradient(llama, expected)
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max() + 1e-7


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_rows_lengths_and_counts_by_hand():
    rows = rollouts()
    assert rows.lengths.tolist() == [11, 11, 8, 6, 7, 6]
    assert rows.starts.tolist() == [4, 4, 4, 2, 2, 2]
    assert rows.completion_lengths.tolist() == [4, 4, 4, 2, 3, 0]
    step = laid_out(rows)
    assert (step.step_rows, step.step_tokens, step.scored_tokens) == (5.0, 17.0, 17.0)
    assert step.scored_row_tokens == 49  # what goes through the model, gaps included
    assert rows.logprobs.isfinite().all()
    joined = Rollouts.join([rows, rows.of_groups([1])])
    assert joined.completion_lengths.tolist() == [4, 4, 4, 2, 3, 0, 2, 3, 0]
    penalty = LengthReward(max_tokens=5, buffer=2)(["x"] * 2, rows)  # pyright: ignore[reportArgumentType]
    assert penalty.tolist() == [[-0.5, -0.5, -0.5], [0.0, 0.0, 0.0]]
    logged = Completions(
        {"math": ADVANTAGES},
        ADVANTAGES,
        ADVANTAGES,
        rows.completion_lengths,
        rows.truncated,
        rows.weight_version,
        torch.full((len(ADVANTAGES),), torch.nan),
        torch.arange(len(ADVANTAGES)),
    )
    assert logged.metrics(0)["rollouts/generated_tokens"] == 17.0
    assert logged.metrics(0)["completions/length_mean"] == pytest.approx(17 / 6)


def test_the_guard_compares_the_policys_tokens_alone(llama):
    rows = rollouts()
    step = StepRows.from_rollouts(rows, torch.ones(6, dtype=torch.bool), MAX_TOKENS, CPU)
    logprobs, _ = score_step(Scorer(), llama, step, Cut(100))
    shifted = torch.where(rows.own, logprobs + 0.01, torch.tensor(-50.0))
    seen = MismatchGuard(1.0).check(logprobs, shifted, step.scored_mask, torch.float32)
    assert seen["sampler/mismatch_mean"] == pytest.approx(0.01, abs=1e-6)
    assert seen["sampler/mismatch_max"] == pytest.approx(0.01, abs=1e-5)


def test_holes_and_tokens_outside_are_refused():
    rows = rollouts()
    with pytest.raises(InputError, match=r"^row 0: the completion \(mask\) has a hole; mark every token behind"):
        replace(rows, mask=rows.own)
    outside = rows.own.clone()
    outside[2, 1] = True
    with pytest.raises(InputError, match=r"^row 2: a token of the policy \(own\) is outside the completion"):
        replace(rows, own=outside)


# -- a run -------------------------------------------------------------------------------------------------------------


class Interrupted(HFEngine):
    """Puts two words of somebody else behind each completion's second token, and scores what follows as it is then read."""

    def stream(self, prompt_ids, sampling):
        for part in super().stream(prompt_ids, sampling):
            yield self._interrupted(part)

    def _interrupted(self, part: Rollouts) -> Rollouts:
        ids = [row[mask].tolist() for row, mask in zip(part.tokens, part.mask, strict=True)]
        prompts = [part.tokens[r, : part.starts[r]].tolist() for r in range(0, len(ids), part.group_size)]
        gapped = [[*row[:2], 9, 10, *row[2:]] for row in ids]
        own = [[*[True] * len(row[:2]), False, False, *[True] * len(row[2:])] for row in ids]
        nothing = [[0.0] * len(row) for row in gapped]
        rest = (part.truncated.tolist(), part.texts, part.group_size, int(part.weight_version[0]))
        rows = Rollouts.pack(prompts, gapped, nothing, *rest, own=own)
        with torch.no_grad():
            logprobs, _ = score(self._model, rows.tokens.to(self._model.device), rows.own.to(self._model.device))
        return replace(rows, logprobs=logprobs.cpu())


def test_a_run_with_gaps_takes_the_plain_steps_under_the_guard(tiny, tmp_path):
    """Two steps of two updates: all shortcuts end where none does, and the sampler agrees with the policy."""
    runs, records = [], []
    for shortcuts in ("none", "all"):
        records.append(Record())
        changes = {"engine": Interrupted(), "objective": DAPO(kl=KLPenalty(0.1)), "updates_per_batch": 2}
        run = fit(module(tiny, shortcuts=shortcuts, **changes), data(), trainer(tmp_path, 4, (records[-1],)))
        runs.append(weights(run))
    assert largest_difference(*runs) < 1e-6
    row = records[1].rows[0]
    assert row["sampler/mismatch_mean"] < 1e-5 and row["optim/grad_norm"] > 1e-3
    assert row["completions/length_max"] <= 6  # max_tokens, which the gap of two is no part of
    assert row["rollouts/generated_tokens"] == row["completions/length_mean"] * 32
