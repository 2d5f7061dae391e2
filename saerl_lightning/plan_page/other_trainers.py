"""Writes a plan as the data set of another trainer (TRL, verl, open-instruct) or as JSON lines, in the plan's order.

Only whole batches are written, as they would be served here. Dropped prompts and those that fill no batch are left out.
The behaviour of each trainer was read in its source: TRL 1.16 (`RepeatSampler`), verl of 2026-01
(`RLHFDataset`, `create_rl_sampler`) and open-instruct of 2026-08 (`HFDataLoader`, `rlvr_tokenize_v3`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    def row(self, planned: PlannedPrompt) -> Row:
        """Converts a prompt to the trainer's columns."""

    @abstractmethod
    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Returns lines of the trainer's configuration: the data file, no shuffling, and the plan's batch size."""

    def unfit(self, prompt: Prompt) -> str:
        """Why the trainer can't hold a prompt; "" where it can."""
        return ""

    def laid_out(self, rows: list[Row]) -> list[Row]:
        """The rows in the order in which they stand in the file."""
        return rows


class TRL(OtherTrainer):
    """`GRPOTrainer` of TRL: conversational prompts; every other column reaches the reward functions."""

    file = "train.parquet"

    def row(self, planned: PlannedPrompt) -> Row:
        """`solution` is written as a formula, because TRL's `accuracy_reward` skips a bare `(1,2)` or `x^2`."""
        prompt = planned.prompt
        solution = prompt.answer if "$" in prompt.answer else f"${prompt.answer}$"
        own = {"prompt": planned.messages, "solution": solution, "answer": prompt.answer, **_about(planned)}
        return {**prompt.columns, **own}

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Fields of `GRPOConfig`; how many rows a device takes at once does not change the order."""
        rows = sizes.prompts * sizes.group_size
        return [
            f'# train_dataset = load_dataset("parquet", data_files="{file}", split="train")',
            "shuffle_dataset: false",
            f"num_generations: {sizes.group_size}",
            f"generation_batch_size: {rows}",
        ]


class Verl(OtherTrainer):
    """`RLHFDataset` of verl: a chat, a data source that names the scorer, and the right answer."""

    file = "train.parquet"

    def row(self, planned: PlannedPrompt) -> Row:
        """`data_source` chooses verl's scorer; one that verl does not know needs `custom_reward_function.path`."""
        prompt = planned.prompt
        return {
            "data_source": prompt.source,
            "prompt": planned.messages,
            "ability": prompt.topic or "math",
            "reward_model": {"style": "rule", "ground_truth": prompt.answer},
            "extra_info": {**_other_columns(prompt), "index": planned.row, "split": "train", **_about(planned)},
        }

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Overrides of `verl.trainer.main_ppo`; a filter of verl's own would move the batches."""
        return [
            f"data.train_files={file}",
            "data.shuffle=False",
            f"data.train_batch_size={sizes.prompts}",
            f"actor_rollout_ref.rollout.n={sizes.group_size}",
            "data.filter_overlong_prompts=False",
            f"data.max_prompt_length={sizes.max_prompt_tokens}",
        ]


class OpenInstruct(OtherTrainer):
    """`grpo_fast` of open-instruct, which always shuffles: the rows are laid so that its first shuffle gives the plan.

    Prompts are asked in the plan's order; a step takes the groups that are finished first, up to `async_steps` ahead.
    """

    file = "train.jsonl"

    def row(self, planned: PlannedPrompt) -> Row:
        """The answer stands as a last turn too: the oldest transforms cut the last turn whatever it is, newer ones this."""
        prompt = planned.prompt
        messages = [*planned.messages, {"role": "assistant", "content": prompt.answer}]
        verifier = prompt.columns.get("dataset", "math")
        return {"messages": messages, "ground_truth": prompt.answer, "dataset": verifier, **_about(planned)}

    def settings(self, file: Path, sizes: BatchSizes) -> list[str]:
        """Flags of `open_instruct/grpo_fast.py`."""
        return [
            f"--dataset_mixer_list {file} 1.0 --dataset_mixer_list_splits train",
            f"--seed {OPEN_INSTRUCT_SEED}",
            f"--num_unique_prompts_rollout {sizes.prompts} --num_samples_per_prompt_rollout {sizes.group_size}",
            f"--max_prompt_token_length {sizes.max_prompt_tokens}",
        ]

    def unfit(self, prompt: Prompt) -> str:
        """Its verifiers see the answer alone."""
        return "is graded by more than its answer, which open-instruct's verifiers don't see" if prompt.grading else ""

    def laid_out(self, rows: list[Row]) -> list[Row]:
        """The rows where the permutation of the first epoch (`torch.randperm`, seeded) looks for them."""
        import torch

        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(OPEN_INSTRUCT_SEED)).tolist()
        places: list[Row] = [{}] * len(rows)
        for row, place in zip(rows, order, strict=True):
            places[place] = row
        return places


class JSONLines(OtherTrainer):
    """Our own JSON lines: one object a prompt, for this trainer or for any script."""

    file = "train.jsonl"

    def row(self, planned: PlannedPrompt) -> Row:
        """The columns that `--data.train` reads."""
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
        """Flags of `fit`: the file's order as it is, and no operation on it."""
        return [
            f"--data.train {file} --data.shuffle_seed null",
            f"--data.batch_size {sizes.prompts} --model.sampling.group_size {sizes.group_size}",
            f"--data.chat.max_prompt_tokens {sizes.max_prompt_tokens}",
        ]

    def unfit(self, prompt: Prompt) -> str:
        """A prompts file has no column for what a procedural task's scorer needs."""
        return "is graded by more than its answer, which a prompts file does not hold" if prompt.grading else ""


TRAINERS: dict[str, OtherTrainer] = {
    "trl": TRL(),
    "verl": Verl(),
    "open-instruct": OpenInstruct(),
    "jsonl": JSONLines(),
}


def require_export(folder: str | None, trainer: str | None, chat: ChatTemplate) -> None:
    """Refuses an export that could not be written; call it before the plan is made.

    Raises:
        InputError: if a trainer is named without a folder, the folder is a file or holds something, or the chat has what
            messages don't hold.
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
    """Writes the planned prompts in a trainer's form, with the ledger and the trainer's settings beside them.

    Args:
        folder: New folder; it appears whole or not at all.
        trainer: One of `TRAINERS`.
        run: The plan and its pool.
        chat: System message and longest prompt of the run.
        group_size: Number of completions per prompt (G).

    Returns:
        The lines of the trainer's settings.

    Raises:
        InputError: if the plan serves nothing, or a prompt is one that the trainer can't hold.
    """
    form = TRAINERS[trainer]
    planned = in_order(run, chat)
    _require_fit(trainer, form, [each.prompt for each in planned])
    sizes = BatchSizes(run.plan.batch_size, group_size, chat.max_prompt_tokens)
    settings = form.settings(folder / form.file, sizes)
    rows = form.laid_out([form.row(each) for each in planned])
    with whole_folder(folder) as staged:
        _write(staged / form.file, rows)
        run.ledger.write(staged / FILE)
        write_whole(staged / SETTINGS, "\n".join(settings) + "\n")
    return settings


def in_order(run: MadePlan, chat: ChatTemplate) -> list[PlannedPrompt]:
    """The prompts of whole batches, in the order in which they are served."""
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


def _about(planned: PlannedPrompt) -> Row:
    """What is known of a prompt beside its text and answer, for rewards and for reading."""
    prompt = planned.prompt
    return {
        "uid": prompt.uid,
        "source": prompt.source,
        "topic": prompt.topic or "",
        "grading": prompt.grading,
        "batch": planned.batch,
        **prompt.labels,
    }


def _other_columns(prompt: Prompt) -> Row:
    """Columns of the prompt's row that verl's own columns don't hold; those of an `extra_info` stand beside them."""
    nested = prompt.columns.get("extra_info")
    taken = ("data_source", "prompt", "messages", "ability", "reward_model", "extra_info")
    others = {name: value for name, value in prompt.columns.items() if name not in taken}
    return {**others, **nested} if isinstance(nested, Mapping) else others


def _write(path: Path, rows: list[Row]) -> None:
    """Parquet or JSON lines, by the name's ending; what single rows lack is null."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as parquet

    # Labels stand in some rows alone, and pyarrow would take the first row's columns for all.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    except pa.ArrowException as error:
        raise InputError(
            f"the prompts' own columns can't stand in parquet, whose columns have one type each ({first_line(error)}); "
            "write --for jsonl, or give the column one type in the data"
        ) from error
    parquet.write_table(table, path)
