"""`label`: measures pass rates. The policy answers a sample of the training prompts, and a reward grades the answers.

No plan is made, no validation set is read and nothing is trained. One process measures; its engine may use several
GPUs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch

from saerl_lightning import lock
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.serving import PromptPool
from saerl_lightning.errors import InputError
from saerl_lightning.policy.weights import named_weights
from saerl_lightning.progress import Bar
from saerl_lightning.prompts.labels import LabelFile, PassRate, Setting, read_labels
from saerl_lightning.ranges import Count, Seed, require_arguments
from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.reward.reward import Reward, grade
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule


@dataclass(frozen=True)
class Measurement:
    """A sample of prompts to measure, in fixed batches, with the policy and the sampling.

    The batches are fixed before the first one is sampled, and a batch's seed depends on its number. A resumed
    measurement therefore gives the same labels as an uninterrupted one.
    """

    model: PolicyModule
    pool: PromptPool
    rows: list[int]  # indices into the pool, in the order of measurement
    batch_size: int
    sampling: Sampling

    def settings(self) -> dict[str, Setting]:
        """All settings that the labels depend on, for the file's first line."""
        drawn = {name: getattr(self.sampling, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")}
        asked = ([self.pool.prompts[row].uid, self.pool.ids[row], self.pool.prompts[row].answer] for row in self.rows)
        return {
            "policy": self.model.policy.path,
            "weights": weights_digest(self.model.model),
            "prompts": hashlib.sha256(repr(list(asked)).encode()).hexdigest()[:16],
            "count": len(self.rows),
            "samples": self.sampling.group_size,
            "batch_size": self.batch_size,
            "engine": type(self.model.engine).__name__,
            "reward": described(self.model.rewards[0]),
            "stop": repr(self.sampling.stop),
            **drawn,
        }

    def batches(self, done: set[str]) -> Iterator[list[PassRate]]:
        """Measures the batches that have a prompt without a label, and yields the missing labels."""
        for number, start in enumerate(range(0, len(self.rows), self.batch_size)):
            batch = self.pool.batch(self.rows[start : start + self.batch_size])
            if any(prompt.uid not in done for prompt in batch.prompts):
                yield [each for each in self._measure(batch, number) if each.uid not in done]

    def _measure(self, batch: PromptBatch, number: int) -> list[PassRate]:
        drawn = replace(self.sampling, seed=self.sampling.seed + 7919 * number)
        rollouts = self.model.engine.generate(batch.ids, drawn)
        reward = self.model.rewards[0]
        grades = grade([reward], batch.prompts, rollouts)[reward.name]  # (P, n)
        graded = grades[~grades.isnan()]
        if len(graded) and not (graded.min() >= 0 and graded.max() <= 1):
            raise InputError(
                f"the first reward, {type(reward).__name__}, gave {graded.min():g} to {graded.max():g}; a pass rate needs "
                "grades from 0 to 1: put e.g. MathReward first in model.rewards"
            )
        counts = (~grades.isnan()).sum(1).tolist()
        sums = grades.nansum(1).tolist()
        return [PassRate(p.uid, s, n) for p, s, n in zip(batch.prompts, sums, counts, strict=True)]


def label(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    out: str,
    prompts: Count,
    samples: Count,
    seed: Seed,
) -> None:
    """Measures pass rates and writes them to a file line by line; a later call resumes it.

    The pass rate p of a prompt is the mean grade of its n graded completions, by the first reward; its standard error
    is sqrt(p (1 - p) / n). A completion whose grader failed (NaN) is left out and reduces n. A prompt without any grade
    gets a line but no label, so that it is not asked again.

    Args:
        model: Module whose policy answers, sampled as in training; a module without a sampling of its own uses
            `val_sampling`.
        datamodule: Datamodule whose training prompts are sampled, if they are short enough.
        trainer: Trainer that sets device and precision.
        out: Path of the file of labels.
        prompts: Number of prompts in the sample (n_lab); all, if there are fewer.
        samples: Number of completions of each prompt (n).
        seed: Seed of the sample and of the completions.

    Raises:
        InputError: if the run has no policy or no prompts, a number is below 1, the file was measured with other
            settings or is being written to, there is more than one process, or the first reward gives grades outside of
            0 to 1.
    """
    require_arguments(label, locals())
    require_policy(model, datamodule)
    model.rewards[0].check()
    if trainer.world_size > 1:
        raise InputError(f"`label` runs in one process, but there are {trainer.world_size}; write --trainer.devices 1")
    drawn = model.sampling if isinstance(model, GRPOModule) else datamodule.val_sampling
    drawn = replace(drawn, group_size=samples, seed=seed)
    # No label file is read: the labels are measured here.
    datamodule.tokenizer, datamodule.labels = model.tokenizer, None
    rows = sampled_rows(datamodule.pool, prompts, seed)
    model.rewards[0].require([datamodule.pool.prompts[row] for row in rows])
    alone = lock.held(lock.beside(Path(out)), f"the labels' file '{out}'")
    with alone, answering(model, trainer, datamodule.chat.max_prompt_tokens, drawn.max_tokens):
        measurement = Measurement(model, datamodule.pool, rows, datamodule.val_batch_size, drawn)
        write_labels(measurement, LabelFile(out, measurement.settings()))
    print(summary(out))


def require_policy(model: lightning.LightningModule, datamodule: lightning.LightningDataModule) -> None:
    """Refuses modules without a policy or without prompts.

    Raises:
        InputError: naming the class.
    """
    for kind, module, wanted in (("model", model, PolicyModule), ("data", datamodule, PromptDataModule)):
        if not isinstance(module, wanted):
            raise InputError(
                f"{kind} is {type(module).__name__}, a {wanted.__name__} is needed: the policy answers training prompts; "
                "give the configs of a policy's run, e.g. -c configs/grpo.yaml"
            )


def sampled_rows(pool: PromptPool, count: int, seed: int) -> list[int]:
    """Draws prompts of the pool that are short enough to be sampled.

    Raises:
        InputError: if there are none.
    """
    servable = pool.servable()
    if not servable:
        raise InputError(
            f"none of the {len(pool.prompts)} training prompts is short enough; raise chat.max_prompt_tokens"
        )
    return np.random.default_rng(seed).permutation(servable)[:count].tolist()


@contextmanager
def answering(model: PolicyModule, trainer: lightning.Trainer, prompt: int, completion: int) -> Iterator[None]:
    """Loads the policy and starts the engine with its weights; closes engine and graders at the end of the block."""
    model.configure_model()
    model.to(trainer.strategy.root_device)
    model = trainer.precision_plugin.convert_module(model)  # pyright: ignore[reportAssignmentType]
    try:
        model.trainer = trainer
        model.start_engine(prompt, completion)
        model.sync()
        with trainer.precision_plugin.forward_context():
            yield
    finally:
        model.teardown("label")


def write_labels(measurement: Measurement, file: LabelFile) -> None:
    """Measures the missing labels and appends them to the file, batch by batch."""
    done = file.open()
    total = len(measurement.rows)
    with Bar(total=total, initial=len(done), unit="prompt", desc="measuring pass rates") as bar:
        for labels in measurement.batches(done):
            file.append(each.record() for each in labels)
            bar.update(len(labels))


def summary(file: str) -> str:
    """Summarises the labels in two lines, with the flag that uses them."""
    rates = np.array([labels["pass_rate"] for labels in read_labels(file).values() if "pass_rate" in labels])
    if not len(rates):
        return f"{file}: no completion could be graded, so there is no label"
    return (
        f"{file}: {len(rates)} prompts, mean pass rate {rates.mean():.3f}, "
        f"{(rates == 0).mean():.1%} never solved, {(rates == 1).mean():.1%} always\n"
        f"learn from them with --data.labels {file}"
    )


def described(reward: Reward) -> str:
    """Name and plain arguments of a reward."""
    plain = ((name, value) for name, value in vars(reward).items() if isinstance(value, str | int | float))
    arguments = {name: value for name, value in plain if not name.startswith("_")}
    return f"{reward.name} {arguments}"


def weights_digest(model: torch.nn.Module) -> str:
    """Identifies weights by 64 evenly spaced values of each tensor; any training step changes some of them."""
    digest = hashlib.sha256()
    for name, tensor in named_weights(model):
        flat = tensor.detach().flatten()
        count = min(64, flat.numel())
        # Indices are computed in integers: float32 is exact only up to 16 million, and could give one beyond the end.
        places = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        digest.update(f"{name} {tuple(tensor.shape)} {flat[places].double().tolist()}".encode())
    return digest.hexdigest()[:16]
