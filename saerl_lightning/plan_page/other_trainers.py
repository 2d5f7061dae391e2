"""Writes a plan as the data set of another trainer (TRL, verl, open-instruct) or as JSON lines, in the plan's order.

Only whole batches are written, as they would be served here. Dropped prompts and those that fill no batch are left out.
The behaviour of each trainer was read in its source: TRL 1.16 (`RepeatSampler`), verl of 2026-01
(`RLHFDataset`, `create_rl_sampler`) and open-instruct of 2026-08 (`HFDataLoader`, `rlvr_tokenize_v3`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import whole_folder, write_whole
from saerl_lightning.plan_page.ledger import FILE
from saerl_lightning.plan_page.planned import MadePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.records import Prompt

SETTINGS = "settings.txt"
OPEN_INSTRUCT_SEED = 1  # its own default

Row = dict[str, Any]


@dataclass(frozen=True)
class PlannedPrompt:
    """A prompt that a plan serves.

    Args:
        prompt: Prompt as in the pool.
        messages: Chat of the prompt, with the run's system message.
        row: Position of the prompt in the pool, from 0.
        batch: Step that serves the prompt, from 0.
    """

    prompt: Prompt
    messages: list[dict[str, str]]
    row: int
    batch: int


@dataclass(frozen=True)
class BatchSizes:
    """Sizes that the order of training depends on.

    Args:
        prompts: Number of prompts per step (P).
        group_size: Number of completions per prompt (G).
        max_prompt_tokens: Length of the longest prompt that is served, in tokens.
    """

    prompts: int
    group_size: int
    max_prompt_tokens: int


class OtherTrainer(ABC):
    """The data format of another trainer, and the settings with which it keeps the order of prompts."""

    file: str  # name of the data file

    @abstractmethod
    def row(self, planned: PlannedPrompt, taken: Set[str]) -> Row:
        """Converts a prompt to the trainer's columns.

        Args:
            planned: Prompt to convert.
            taken: Names that the prompts' own columns have, whose values stay as they are.
        """

    @abstractmethod
    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns lines of the trainer's configuration: the data file, no shuffling, and the plan's batch size."""

    def unfit(self, prompt: Prompt) -> str:
        """Returns why the trainer can't represent a prompt; "" if it can."""
        return ""

    def in_file_order(self, rows: list[Row]) -> list[Row]:
        """Orders the rows as the file must have them, so that the trainer reads them in the plan's order."""
        return rows


class TRL(OtherTrainer):
    """Data set of TRL's `GRPOTrainer`: conversational prompts; all other columns are passed to the reward functions."""

    file = "train.parquet"

    def row(self, planned: PlannedPrompt, taken: Set[str]) -> Row:
        """Returns the columns; a new `solution` is a formula: TRL's `accuracy_reward` skips a bare `(1,2)` or `x^2`."""
        prompt = planned.prompt
        solution = prompt.answer if "$" in prompt.answer else f"${prompt.answer}$"
        answers = {"solution": solution, "answer": prompt.answer}
        new = {name: value for name, value in answers.items() if name not in taken and prompt.answer}
        return {**prompt.columns, "prompt": planned.messages, **new, **_about(planned, taken)}

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns fields of `GRPOConfig`. The batch size per device is not among them: the order is the same for any."""
        rows = sizes.prompts * sizes.group_size
        return [
            f'# train_dataset = load_dataset("parquet", data_files="{file}", split="train")',
            "shuffle_dataset: false",
            f"num_generations: {sizes.group_size}",
            f"generation_batch_size: {rows}",
        ]


class Verl(OtherTrainer):
    """Data set of verl's `RLHFDataset`: a chat, a data source that names the scorer, and the correct answer."""

    file = "train.parquet"

    def row(self, planned: PlannedPrompt, taken: Set[str]) -> Row:
        """Returns the columns; a `data_source` for which verl has no scorer needs `custom_reward_function.path`."""
        prompt = planned.prompt
        others = _other_columns(prompt)
        new = {name: value for name, value in {"index": planned.row, "split": "train"}.items() if name not in taken}
        own = prompt.columns.get("reward_model")
        graded = own if isinstance(own, Mapping) and own.get("ground_truth") == prompt.answer else None
        return {
            "data_source": prompt.source,
            "prompt": planned.messages,
            "ability": prompt.topic or "math",
            "reward_model": dict(graded or {"style": "rule", "ground_truth": prompt.answer}),
            "extra_info": {**others, **new, **_about(planned, taken)},
        }

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns overrides of `verl.trainer.main_ppo`. verl's length filter is off, as it would move the batches."""
        return [
            f"data.train_files={file}",
            "data.shuffle=False",
            f"data.train_batch_size={sizes.prompts}",
            f"actor_rollout_ref.rollout.n={sizes.group_size}",
            "data.filter_overlong_prompts=False",
            f"data.max_prompt_length={sizes.max_prompt_tokens}",
        ]


class OpenInstruct(OtherTrainer):
    """Data set of open-instruct's `grpo_fast`, in an order that the shuffle of the first epoch turns into the plan's.

    open-instruct always shuffles. It requests prompts in the plan's order, up to `async_steps` steps ahead, but a step
    trains on the groups that are finished first.
    """

    file = "train.jsonl"

    def row(self, planned: PlannedPrompt, taken: Set[str]) -> Row:
        """Returns the columns, with the answer also as the last turn of the chat."""
        # open-instruct removes it: older versions remove the last turn of any role, newer ones an assistant's last turn.
        prompt = planned.prompt
        messages = [*planned.messages, {"role": "assistant", "content": prompt.answer}]
        verifier = prompt.columns.get("dataset", "math")
        return {
            "messages": messages,
            "ground_truth": prompt.answer,
            "dataset": verifier,
            **_about(planned, frozenset()),
        }

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns flags of `open_instruct/grpo_fast.py`."""
        return [
            f"--dataset_mixer_list {file} 1.0 --dataset_mixer_list_splits train",
            f"--seed {OPEN_INSTRUCT_SEED}",
            f"--num_unique_prompts_rollout {sizes.prompts} --num_samples_per_prompt_rollout {sizes.group_size}",
            f"--max_prompt_token_length {sizes.max_prompt_tokens}",
        ]

    def unfit(self, prompt: Prompt) -> str:
        """Returns a reason for prompts that are graded by more than their answer, which is all that verifiers get."""
        return "is graded by more than its answer, which open-instruct's verifiers don't see" if prompt.grading else ""

    def in_file_order(self, rows: list[Row]) -> list[Row]:
        """Applies the inverse of the first epoch's permutation (`torch.randperm` with open-instruct's default seed)."""
        import torch

        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(OPEN_INSTRUCT_SEED)).tolist()
        places: list[Row] = [{}] * len(rows)
        for row, place in zip(rows, order, strict=True):
            places[place] = row
        return places


class JSONLines(OtherTrainer):
    """JSON lines in this package's own format: one object per prompt."""

    file = "train.jsonl"

    def row(self, planned: PlannedPrompt, taken: Set[str]) -> Row:
        """Returns the columns that `--data.train` reads."""
        prompt = planned.prompt
        known = {"topic": prompt.topic, **prompt.labels, "source": prompt.source}
        return {
            "id": prompt.uid,
            "messages": planned.messages,
            "answer": prompt.answer,
            **known,
            "batch": planned.batch,
        }

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns flags of `fit` that keep the order of the file."""
        return [
            f"--data.train {file} --data.shuffle_seed null",
            f"--data.batch_size {sizes.prompts} --model.sampling.group_size {sizes.group_size}",
            f"--data.chat.max_prompt_tokens {sizes.max_prompt_tokens}",
        ]

    def unfit(self, prompt: Prompt) -> str:
        """Returns a reason for prompts of procedural tasks, whose scorer needs more than a prompts file's columns."""
        return "is graded by more than its answer, which a prompts file does not hold" if prompt.grading else ""


TRAINERS: dict[str, OtherTrainer] = {
    "trl": TRL(),
    "verl": Verl(),
    "open-instruct": OpenInstruct(),
    "jsonl": JSONLines(),
}


def require_export(folder: str | None, trainer: str | None, chat: ChatTemplate) -> None:
    """Refuses an export that can't be written; called before the plan is made.

    Raises:
        InputError: if a trainer is named without a folder, the folder is a file or not empty, or the chat has a setting
            that messages can't represent.
    """
    if folder is None:
        if trainer is not None:
            raise InputError(f"--for {trainer} names a trainer, and no folder is named to write to; add --export DIR")
        return
    place = Path(folder)
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise InputError(f"--export '{folder}' exists and is not empty; name a new folder, or remove this one first")
    for name in ("template", "options", "prefill"):
        if value := getattr(chat, name):
            raise InputError(
                f"data.chat.{name} is {value!r:.60}, which an export does not hold: the other trainer writes its messages "
                f"by its own settings; leave it out with --data.chat.{name} {'null' if name != 'prefill' else chr(34) * 2}"
            )


def export_plan(folder: Path, trainer: str, run: MadePlan, chat: ChatTemplate, group_size: int) -> list[str]:
    """Writes the planned prompts in a trainer's format, with the ledger and the trainer's settings in the same folder.

    Args:
        folder: Path of the new folder, which is created complete or not at all.
        trainer: Name of the trainer, a key of `TRAINERS`.
        run: Plan and its pool of prompts.
        chat: Chat template of the run, with its system message and longest prompt.
        group_size: Number of completions per prompt (G).

    Returns:
        Lines of the trainer's settings.

    Raises:
        InputError: if the plan serves no prompt, or the trainer can't represent one of its prompts.
    """
    form = TRAINERS[trainer]
    planned = in_order(run, chat)
    _require_fit(trainer, form, [each.prompt for each in planned])
    sizes = BatchSizes(run.plan.batch_size, group_size, chat.max_prompt_tokens)
    settings = form.settings(folder / form.file, sizes)
    taken = {name for each in planned for name in (*each.prompt.columns, *_other_columns(each.prompt))}
    rows = form.in_file_order([form.row(each, taken) for each in planned])
    with whole_folder(folder) as staged:
        _write(staged / form.file, rows)
        run.ledger.write(staged / FILE)
        write_whole(staged / SETTINGS, "\n".join(settings) + "\n")
    return settings


def in_order(run: MadePlan, chat: ChatTemplate) -> list[PlannedPrompt]:
    """Returns the prompts of whole batches, in the order in which they are served."""
    return [
        PlannedPrompt(run.prompts[row], [dict(each) for each in chat.messages(run.prompts[row])], row, batch)
        for batch, rows in enumerate(run.plan.batches().tolist())
        for row in rows
    ]


def _require_fit(trainer: str, form: OtherTrainer, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise InputError("the plan serves no prompt, so there is nothing to export; see its ledger for the reasons")
    unfit = [(prompt.uid, why) for prompt in prompts if (why := form.unfit(prompt))]
    if unfit:
        uid, why = unfit[0]
        raise InputError(
            f"--for {trainer} can't hold {len(unfit)} of {len(prompts)} prompts: '{uid}' {why}; write --for trl or verl, "
            "whose rewards get every column, or plan prompts that have plain answers"
        )


def _about(planned: PlannedPrompt, taken: Set[str]) -> Row:
    """Columns of a prompt besides its text and answer; one whose name is taken begins with `saerl_`."""
    prompt = planned.prompt
    columns = {
        "uid": prompt.uid,
        "source": prompt.source,
        "topic": prompt.topic or "",
        "grading": prompt.grading,
        "batch": planned.batch,
        **prompt.labels,
    }
    return {f"saerl_{name}" if name in taken else name: value for name, value in columns.items()}


def _other_columns(prompt: Prompt) -> Row:
    """Columns of the prompt's row that verl's own columns don't contain, with those of an `extra_info` unpacked."""
    nested = prompt.columns.get("extra_info")
    taken = ("data_source", "prompt", "messages", "ability", "reward_model", "extra_info")
    others = {name: value for name, value in prompt.columns.items() if name not in taken}
    return {**others, **nested} if isinstance(nested, Mapping) else others


def _write(path: Path, rows: list[Row]) -> None:
    """Writes parquet or JSON lines, by the suffix of the path. Columns that a row does not have are null."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as parquet

    # Only some rows have labels, and pyarrow would take the first row's columns for all rows.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    except pa.ArrowException as error:
        raise InputError(
            f"the prompts' own columns can't stand in parquet, whose columns have one type each ({first_line(error)}); "
            "write --for jsonl, or give the column one type in the data"
        ) from error
    parquet.write_table(table, path)
