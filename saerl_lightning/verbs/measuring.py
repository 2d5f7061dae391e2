"""Measures pass rates of batches of prompts: in this process, or in Ray actors, each of which has an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import cloudpickle
import lightning

from saerl_lightning.cluster.ray_actors import RayActors, Work
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.labels import PassRate
from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.reward.reward import grade
from saerl_lightning.training.policy_module import PolicyModule

Numbered = tuple[int, PromptBatch]  # number of a batch, which its seed depends on


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


def measured(model: PolicyModule, sampling: Sampling, numbered: Numbered) -> list[PassRate]:
    """Lets the policy answer a batch, and grades the answers by the first reward.

    Args:
        model: Module whose engine is started.
        sampling: Sampling of all batches; the batch's number is added to its seed.
        numbered: Number of the batch, and the batch.

    Raises:
        InputError: if a grade is not from 0 to 1.
    """
    number, batch = numbered
    rollouts = model.engine.generate(batch.ids, replace(sampling, seed=sampling.seed + 7919 * number))
    reward = model.rewards[0]
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


@dataclass(frozen=True)
class Answering:
    """Makes, in an actor, the function that measures a batch, with a policy and an engine of its own.

    Args:
        packed: The module, pickled before its weights were loaded.
        sampling: Sampling of all batches.
        prompt_tokens: Largest number of tokens of a prompt.
        accelerator: Lightning's name of the device.
        precision: Lightning's name of the precision.
    """

    packed: bytes
    sampling: Sampling
    prompt_tokens: int
    accelerator: str
    precision: str

    def __call__(self) -> Work:
        """Loads the policy and starts the engine, which ends with the actor."""
        model = cloudpickle.loads(self.packed)
        trainer = lightning.Trainer(
            accelerator=self.accelerator,
            devices=1,
            precision=self.precision,  # pyright: ignore[reportArgumentType]  # a name that a trainer gave
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        open_ones = ExitStack()
        open_ones.enter_context(answering(model, trainer, self.prompt_tokens, self.sampling.max_tokens))

        def measure(numbered: Numbered) -> list[PassRate]:
            # The stack is held here, so that the engine stays open.
            assert open_ones is not None
            return measured(model, self.sampling, numbered)

        return measure


def measured_over_ray(actors: RayActors, answers: Answering, batches: Iterable[Numbered]) -> Iterator[list[PassRate]]:
    """Yields the pass rates of each batch as an actor has measured it; they are those of one process."""
    for _, labels in actors.map(answers, batches, "--actors"):
        yield labels
