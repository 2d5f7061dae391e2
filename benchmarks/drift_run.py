"""A run as `drift.py` reads it: its checkpoints in the order of their steps, the weights of each, and measured difficulty.

Every measurement is `main.py label` with the run's own settings and another policy. It is made in two halves with draws of
their own, so that what the halves agree on says how far the labels can be trusted. Nothing is computed about signals here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from jsonargparse import ArgumentParser

from saerl_lightning.cli import run as command_line
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_yaml, write_whole
from saerl_lightning.policy.weights import require_readable
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.labels import read_labels
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest_file
from saerl_lightning.tools.export import export

HALVES = ("first", "second")
KEPT = ("seed_everything", "trainer", "model", "data")  # of a run's config: what `label` knows too
ALONE = {"logger": False, "callbacks": None, "devices": 1, "num_nodes": 1, "strategy": "auto"}
FLAGS = "--checkpoint.save_top_k=-1 --checkpoint.every_n_train_steps=N"


class SampleOf(PromptSource):
    """A random sample of another source's prompts, no text twice: a probe must not meet in a test what it learned.

    Args:
        source: path of the prompts, or a source.
        count: prompts drawn; all, where there are fewer.
        seed: of the draw.
    """

    def __init__(self, source: str | PromptSource, count: int, seed: int = 0) -> None:
        self.source = source
        self.count = count
        self.seed = seed

    def load(self) -> list[Prompt]:
        """Reads the source and draws, in the source's order."""
        prompts = (FilePrompts(self.source) if isinstance(self.source, str) else self.source).load()
        distinct = np.sort(np.unique([prompt.text for prompt in prompts], return_index=True)[1])
        drawn = np.random.default_rng(self.seed).permutation(distinct)[: self.count]
        return [prompts[row] for row in np.sort(drawn)]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a run: a file, or the policy that the run started from (None)."""

    step: int
    file: Path | None


@dataclass(frozen=True)
class Measured:
    """Difficulty of n prompts, 100 x the share of wrong answers, measured twice and taken together."""

    first: Float[np.ndarray, " n"]
    second: Float[np.ndarray, " n"]
    difficulty: Float[np.ndarray, " n"]  # over the answers of both halves

    @classmethod
    def read(cls, files: Sequence[Path], uids: Sequence[str]) -> Measured:
        """Reads both halves of prompts that each of the two files holds."""
        found = [read_labels(str(file)) for file in files]
        first, second = (np.array([100 * (1 - half[uid]["pass_rate"]) for uid in uids]) for half in found)
        weights = [np.array([half[uid]["samples"] for uid in uids]) for half in found]
        return cls(first, second, np.average([first, second], axis=0, weights=weights))


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run: its folder, and its settings.

    The folder's own `config.yaml` is not taken at its word: who wrote the folder could name any class and any path. The
    settings are those of the file that the command line names as a configuration.
    """

    folder: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, file: Path) -> Run:
        """Reads the run's configuration.

        Args:
            folder: of the run.
            file: its whole configuration.

        Raises:
            InputError: if it can't be read, or is not that of a policy's run.
        """
        config = read_yaml(file, "the configuration")
        try:
            _ = config["model"]["init_args"]["policy"]["path"], config["data"]["init_args"]["train"]
        except (KeyError, TypeError) as error:
            raise InputError(f"'{file}' names no policy or no prompts ({error!r}); give a policy's run") from error
        return cls(folder, config)

    @property
    def name(self) -> str:
        """The last two parts of its path, which tell the runs of a study apart."""
        return "-".join(self.folder.resolve().parts[-2:])

    @property
    def start(self) -> str:
        """Path of the policy that the run started from."""
        return self.config["model"]["init_args"]["policy"]["path"]

    def checkpoints(self) -> list[Checkpoint]:
        """Step 0 and every saved step, ascending; of two files of one step the first by name.

        Raises:
            InputError: if no step was saved, or a file can't be read.
        """
        found: dict[int, Path | None] = {0: None}
        for file in sorted((self.folder / "checkpoints").glob("*.ckpt")):
            found.setdefault(step_of(file), file)
        if len(found) == 1:
            raise InputError(f"'{self.folder / 'checkpoints'}' holds no checkpoint of a later step; train with {FLAGS}")
        return [Checkpoint(step, found[step]) for step in sorted(found)]

    def place(self, checkpoint: Checkpoint, out: Path) -> Path:
        """A folder for what is known of a checkpoint; other weights of the same step have another."""
        if checkpoint.file is None:
            return out / "step-0"
        return out / f"step-{checkpoint.step}-{digest_file(checkpoint.file)[:8]}"

    def weights(self, checkpoint: Checkpoint, place: Path) -> str:
        """Path of the checkpoint's policy as an HF folder, exported if it is not there yet."""
        if checkpoint.file is None:
            return self.start
        folder = place / "policy"
        if not folder.is_dir():  # it is renamed into its place once it is whole
            folder.parent.mkdir(parents=True, exist_ok=True)
            export(str(checkpoint.file), str(folder), self.start)
        return str(folder)

    def sample(self, count: int, seed: int) -> SampleOf:
        """Prompts of the training set, the same for every checkpoint."""
        parser = ArgumentParser()
        parser.add_argument("--train", type=str | PromptSource)
        read = parser.parse_object({"train": self.config["data"]["init_args"]["train"]})
        return SampleOf(parser.instantiate(read).train, count, seed)

    def measure(self, policy: str, place: Path, sample: SampleOf, samples: int, step: int) -> list[Path]:
        """Measures pass rates in two halves, and gives their files; what is measured already is kept.

        Answers of another step or half are drawn with another seed: equal draws would let labels agree by chance.

        Args:
            policy: HF folder, or a name on the hub.
            place: folder that the files go to.
            sample: prompts.
            samples: answers a prompt, over both halves; even.
            step: of the checkpoint.
        """
        files = []
        for half, name in enumerate(HALVES):
            whole = place / f"labels-{sample.count}x{samples}-{sample.seed}-{name}.jsonl"
            files.append(whole)
            if not whole.is_file():
                part, settings = whole.with_suffix(".part"), whole.with_suffix(".yaml")
                write_whole(settings, yaml.safe_dump(self.label_config(policy, sample), sort_keys=False))
                numbers = {"prompts": sample.count, "samples": samples // 2, "seed": 1 + sample.seed + 2 * step + half}
                flags = [f"--{key}={value}" for key, value in numbers.items()]
                command_line(["label", "-c", str(settings), f"--out={part}", f"--run_dir={place / 'label'}", *flags])
                part.rename(whole)
        return files

    def label_config(self, policy: str, sample: SampleOf) -> dict[str, Any]:
        """The run's own settings with this policy, in one process, on the sample."""
        config = {key: copy.deepcopy(self.config[key]) for key in KEPT if key in self.config}
        config["trainer"] = {**config.get("trainer", {}), **ALONE}
        config["model"]["init_args"]["policy"] |= {"path": policy, "lora": None}  # adapters are merged in
        drawn = {"source": config["data"]["init_args"]["train"], "count": sample.count, "seed": sample.seed}
        config["data"]["init_args"]["train"] = {"class_path": f"{__name__}.{SampleOf.__name__}", "init_args": drawn}
        return config


def step_of(file: Path) -> int:
    """The optimiser steps behind a checkpoint, as it says itself; `last.ckpt` has no number in its name.

    Raises:
        InputError: if the file can't be read.
    """
    require_readable(file)
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def labelled_everywhere(prompts: Sequence[Prompt], files: Sequence[Path]) -> list[Prompt]:
    """The prompts that every measurement gave a pass rate, so that all steps are compared on the same ones.

    Raises:
        InputError: if a file holds another prompt: the source did not give the same prompts twice.
    """
    drawn, kept = {prompt.uid for prompt in prompts}, list(prompts)
    for file in files:
        labels = read_labels(str(file))
        if strange := sorted(set(labels) - drawn):
            raise InputError(
                f"'{file}' holds {len(strange)} prompts that are not in the sample (first: '{strange[0]}'): data.train gives "
                "other prompts each time it is read, or the folder is of another run; name another --out"
            )
        kept = [prompt for prompt in kept if "pass_rate" in labels.get(prompt.uid, {})]
    return kept
