"""How far the objectives are from TRL's: its real `_compute_loss`, run on one micro-batch of random rows.

`tests/objective/agreement.py` prints the table; test_trl_agreement.py asserts over it. The rows are off-policy
(token ratios of about 0.1 to 10), of unequal lengths, in float64. TRL's trainers are made without `__init__`, with the
attributes that `_compute_loss` reads. Not compared, because they differ by design: several micro-batches (TRL's `grpo`,
`dr_grpo` and `bnpo` divide by the micro-batch), an entropy bonus on the top-entropy tokens only, a top-entropy share for
GSPO.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from saerl_lightning.objective.bnpo import BNPO
from saerl_lightning.objective.cispo import CISPO
from saerl_lightning.objective.dapo import DAPO
from saerl_lightning.objective.dr_grpo import DrGRPO
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.gspo import GSPO
from saerl_lightning.objective.objective import LossInputs
from saerl_lightning.objective.rloo import RLOO
from saerl_lightning.objective.terms import EntropyTerm, KLPenalty, SamplerCorrection

ROWS, WIDTH, MAX_TOKENS = 8, 12, 20
SEEDS = range(3)
CORRECTIONS = [
    None,
    *(SamplerCorrection(level, mode, 2.0, 0.5) for level in ("token", "sequence") for mode in ("truncate", "mask")),
    SamplerCorrection(cap=3.0),
]
PEERS: dict[type, dict[str, Any]] = {
    GRPO: {"loss_type": "grpo"},
    DrGRPO: {"loss_type": "dr_grpo"},
    DAPO: {"loss_type": "dapo", "epsilon_high": 0.28},
    BNPO: {"loss_type": "bnpo"},
    CISPO: {"loss_type": "cispo", "epsilon_high": 5.0},
    GSPO: {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
}


@dataclass(frozen=True)
class Agreement:
    """The largest differences to TRL over all seeds, for one objective and its terms."""

    objective: str
    kl: float
    correction: str
    others: str
    loss: float  # |difference|
    gradient: float  # max |difference|, with respect to log-probabilities and entropies
    size: float  # max |gradient|, so that a gradient of 0 agrees with nothing


def step(seed: int) -> LossInputs:
    """A step of one micro-batch: rows of unequal length, old log-probabilities that are not the new ones."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64)  # noqa: E731
    mask = torch.arange(WIDTH)[None] < torch.randint(1, WIDTH + 1, (ROWS, 1), generator=g)
    old = -normal().abs()
    entropy = torch.rand(ROWS, WIDTH, generator=g).double()  # exact in float32, in which TRL takes its quantile
    return LossInputs(
        logprobs=(old + 0.8 * normal()).requires_grad_(),
        old_logprobs=old,
        sampler_logprobs=old + 0.4 * normal(),
        entropy=entropy.requires_grad_(),
        mask=mask,
        advantages=torch.randn(ROWS, generator=g, dtype=torch.float64),
        reference=old + 0.3 * normal(),
        step_rows=float(ROWS),
        step_tokens=float(mask.sum()),
        scored_tokens=float(mask.sum()),
        max_tokens=MAX_TOKENS,
        entropy_floor=-1.0,
    )


class OneProcess:
    """An accelerator of one process."""

    num_processes, sync_gradients = 1, True

    def gather(self, tensor: Tensor) -> Tensor:
        """What all processes have."""
        return tensor

    def pad_across_processes(self, tensor: Tensor, **_: Any) -> Tensor:
        """The tensor, as long as on every process."""
        return tensor

    def reduce(self, tensor: Tensor, **_: Any) -> Tensor:
        """The sum over processes."""
        return tensor


def trainer(inputs: LossInputs, settings: dict[str, Any]) -> Any:
    """TRL's trainer without its `__init__`, whose model answers with the given log-probabilities."""
    made: Any = object.__new__(RLOOTrainer if settings.get("rloo") else GRPOTrainer)
    args = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
    plain = {
        "accelerator": OneProcess(),
        "aux_loss_enabled": False,
        "beta": 0.0,
        "current_gradient_accumulation_steps": 1,
        "entropy_coef": 0.0,
        "epsilon_high": 0.2,
        "epsilon_low": 0.2,
        "importance_sampling_level": "token",
        "max_completion_length": inputs.max_tokens,
        "model": SimpleNamespace(training=True),
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "use_adaptive_entropy": False,
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "_metrics": {"train": defaultdict(list)},
    }
    given = {name: value for name, value in settings.items() if name not in args and name != "rloo"}
    vars(made).update(plain | given)
    made.args = SimpleNamespace(**{name: settings.get(name, value) for name, value in args.items()})
    made._entropy_bonus_enabled = made.entropy_coef != 0
    made._get_per_token_logps_and_entropies = lambda *_, **__: (inputs.logprobs, inputs.entropy, None)
    return made


def importance_ratio(inputs: LossInputs, correction: SamplerCorrection | None) -> Tensor:
    """TRL 1.16's lines, which can't be called alone: grpo_trainer.py, `_generate_and_score_completions`, 2663-2708."""
    if correction is None:
        return torch.ones(ROWS, 1)
    difference = (inputs.old_logprobs - inputs.sampler_logprobs) * inputs.mask
    if correction.level == "sequence":
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if correction.mode == "truncate":
        return torch.clamp(ratio, min=correction.floor, max=correction.cap)
    invalid = (ratio < (-torch.inf if correction.floor is None else correction.floor)) | (ratio > correction.cap)
    return ratio.masked_fill(invalid, value=0.0)


def peer_loss(inputs: LossInputs, settings: dict[str, Any], correction: SamplerCorrection | None) -> Tensor:
    """The loss by TRL's own code."""
    peer = trainer(inputs, settings)
    nothing = torch.zeros(ROWS, 0, dtype=torch.long)
    return peer._compute_loss(
        peer.model,
        {
            "prompt_ids": nothing,
            "prompt_mask": nothing,
            "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.long),
            "completion_mask": inputs.mask.long(),
            "advantages": inputs.advantages,
            "old_per_token_logps": inputs.old_logprobs,
            "old_logps": (inputs.old_logprobs * inputs.mask).sum(1),
            "ref_per_token_logps": inputs.reference,
            "importance_sampling_ratio": importance_ratio(inputs, correction),
            "num_items_in_batch": inputs.mask.sum(),
        },
    )


def gradient(loss: Tensor, inputs: LossInputs) -> Tensor:
    """With respect to log-probabilities and entropies, one after the other."""
    found = torch.autograd.grad(loss, [inputs.logprobs, inputs.entropy], allow_unused=True)
    return torch.cat([torch.zeros(ROWS, WIDTH) if each is None else each for each in found])


def with_floor(inputs: LossInputs, top_share: float) -> LossInputs:
    """The step with the floor that leaves `top_share` of its tokens, by the quantile that TRL takes."""
    if top_share == 1:
        return inputs
    floor = torch.quantile(inputs.entropy.detach()[inputs.mask].float(), 1 - top_share)
    return replace(inputs, entropy_floor=float(floor))


def compare(made: Any, settings: dict[str, Any], others: str = "") -> Agreement:
    """Runs both on the same steps; `settings` are TRL's names for what `made` was made with."""
    losses, gradients, sizes = [], [], []
    for seed in SEEDS:
        inputs = with_floor(step(seed), settings.get("top_entropy_quantile", 1.0))
        ours, theirs = made(inputs)[0], peer_loss(inputs, settings, made.correction)
        mine, peers = gradient(ours, inputs), gradient(theirs, inputs)
        losses.append(float((ours - theirs).detach().abs()))
        gradients.append(float((mine - peers).abs().max()))
        sizes.append(float(peers.abs().max()))
    kl = 0.0 if made.kl is None else made.kl.weight
    c = made.correction
    correction = "none" if c is None else f"{c.level}, {c.mode} to {'0' if c.floor is None else c.floor}..{c.cap}"
    return Agreement(type(made).__name__, kl, correction, others, max(losses), max(gradients), min(sizes))


def rows() -> Iterator[Agreement]:
    """Every objective that TRL has too, with and without KL and with every correction; then the other terms."""
    for kind, settings in PEERS.items():
        for beta in (0.0, 0.1):
            kl = KLPenalty(beta) if beta else None
            for correction in CORRECTIONS:
                yield compare(kind(kl=kl, correction=correction), settings | {"beta": beta})
    for kind, settings in PEERS.items():
        bonus = EntropyTerm(bonus=0.05)
        yield compare(kind(entropy=bonus), settings | {"entropy_coef": 0.05}, "entropy bonus 0.05")
        if kind is not GSPO:
            top = settings | {"top_entropy_quantile": 0.3, "beta": 0.1}
            yield compare(kind(kl=KLPenalty(0.1), entropy=EntropyTerm(top_share=0.3)), top, "top-entropy share 0.3")
        if kind is not CISPO:
            yield compare(kind(dual_clip=1.5), settings | {"delta": 1.5}, "dual clip = delta = 1.5")
    yield compare(RLOO(), {"rloo": True}, "TRL's RLOOTrainer")


def table() -> str:
    """The rows in Markdown."""
    head = (
        "| objective | KL weight | correction | other terms | loss: abs. difference | gradient: max abs. difference |"
    )
    lines = [head, "|" + " --- |" * 6]
    for r in rows():
        lines.append(f"| {r.objective} | {r.kl} | {r.correction} | {r.others} | {r.loss:.1e} | {r.gradient:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
