"""`label`: measures pass rates. The policy answers a sample of the training prompts, and a reward grades the answers.

No plan is made, no validation set is read and nothing is trained. One process measures, whose engine may use several
GPUs; or several actors of a Ray cluster, each with an engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cloudpickle
import lightning
import numpy as np
import torch

from saerl_lightning import lock
from saerl_lightning.cluster.ray_actors import RayActors
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.prompt_pool import PromptPool
from saerl_lightning.errors import InputError
from saerl_lightning.policy.weights import named_weights
from saerl_lightning.progress import Bar
from saerl_lightning.prompts.labels import LabelFile, PassRate, Setting, read_labels
from saerl_lightning.ranges import Count, CountFrom0, NotNegative, Seed, require_arguments
from saerl_lightning.records import Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.verbs.measuring import Answering, Numbered, answering, measured, measured_over_ray


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

    def batches(self, done: set[str]) -> Iterator[Numbered]:
        """Yields the batches that have a prompt without a label, with their numbers."""
        for number, start in enumerate(range(0, len(self.rows), self.batch_size)):
            batch = self.pool.batch(self.rows[start : start + self.batch_size])
            if any(prompt.uid not in done for prompt in batch.prompts):
                yield number, batch


def label(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    out: str,
    prompts: Count,
    samples: Count,
    seed: Seed,
    actors: CountFrom0 = 0,
    cpus: NotNegative = 1.0,
    gpus: NotNegative = 0.0,
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
        actors: Number of Ray actors that measure, each with a policy and an engine; 0 measures in this process. The
            labels are the same, in another order.
        cpus: Number of CPUs reserved for each actor.
        gpus: Number of GPUs reserved for each actor.

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
    with ExitStack() as open_ones:
        open_ones.enter_context(lock.held(lock.beside(Path(out)), f"the labels' file '{out}'"))
        over = RayActors(actors, cpus, gpus) if actors else None
        measure = open_ones.enter_context(_measuring(model, trainer, datamodule.chat.max_prompt_tokens, drawn, over))
        measurement = Measurement(model, datamodule.pool, rows, datamodule.val_batch_size, drawn)
        write_labels(measurement, LabelFile(out, measurement.settings()), measure)
    print(summary(out))


Measure = Callable[[Iterator[Numbered]], Iterator[list[PassRate]]]


@contextmanager
def _measuring(
    model: PolicyModule, trainer: lightning.Trainer, longest: int, drawn: Sampling, actors: RayActors | None
) -> Iterator[Measure]:
    """Gives the function that measures batches, in this process or in actors. The policy is loaded here in any case."""
    if actors is None:
        with answering(model, trainer, longest, drawn.max_tokens):
            yield partial(map, partial(measured, model, drawn))
        return
    accelerator = "auto" if actors.gpus else "cpu"
    answers = Answering(cloudpickle.dumps(model), drawn, longest, accelerator, str(trainer.precision))
    model.configure_model()  # for the digest of its weights, after the module was pickled without them
    yield partial(measured_over_ray, actors, answers)


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


def write_labels(measurement: Measurement, file: LabelFile, measure: Measure) -> None:
    """Measures the missing labels and appends them to the file, batch by batch.

    Args:
        measurement: Prompts to measure, in batches.
        file: File of the labels.
        measure: Function that yields the labels of batches, in any order.
    """
    done = file.open()
    total = len(measurement.rows)
    with Bar(total=total, initial=len(done), unit="prompt", desc="measuring pass rates") as bar:
        for labels in measure(measurement.batches(done)):
            missing = [each for each in labels if each.uid not in done]
            file.append(each.record() for each in missing)
            bar.update(len(missing))


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
