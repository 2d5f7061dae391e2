"""Conversions that every other trainer needs: clip ranges, KL, optimiser, schedule, data sets, loggers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from saerl_lightning.migration.draft import Draft, made
from saerl_lightning.prompts.places import ENDINGS, is_saved, on_hub, splits

ROWS_OF_A_MICRO_BATCH = 16384  # tokens; the default of model.micro_tokens


def put_schedule(draft: Draft, shape: str, warmup: float, steps: int, names: tuple[str, str, str]) -> None:
    """Sets warm-up and learning-rate schedule.

    Args:
        draft: Configuration to write to.
        shape: Name of the schedule: constant, linear, cosine, or another, which is recorded as lost.
        warmup: Optimiser steps of warm-up; below 1, their share of all steps.
        steps: Optimiser steps of the run; 0 if the file does not give them.
        names: Names of the arguments for shape, warm-up and steps.
    """
    name, warm, total = names
    if 0 < warmup < 1 and not steps:
        draft.lose(warm, f"write --model.warmup_steps N: a share of the run needs its number of steps, {total}")
    elif warmup:
        draft.put("model.warmup_steps", -(-warmup * steps // 1).__int__() if warmup < 1 else int(warmup), warm)
    if shape in ("constant", "constant_with_warmup"):
        draft.put("model.lr_scheduler", None, name)
    elif shape not in ("linear", "cosine"):
        draft.lose(name, f"write --model.lr_scheduler with a schedule of torch: '{shape}' is not converted")
    elif not steps:
        classes = "LinearLR" if shape == "linear" else "CosineAnnealingLR"
        draft.lose(name, f"write --model.lr_scheduler {classes} with the run's steps: {total} does not say them")
        draft.put("model.lr_scheduler", None, "none, see the list of what was not carried")
    else:
        linear = made("torch.optim.lr_scheduler.LinearLR", start_factor=1.0, end_factor=0.0, total_iters=steps)
        cosine = made("torch.optim.lr_scheduler.CosineAnnealingLR", T_max=steps)
        draft.put("model.lr_scheduler", linear if shape == "linear" else cosine, name, total)


def kl(weight: float, estimator: str, where: str) -> dict[str, object] | None:
    """Returns the KL penalty; None for weight 0, which holds no reference model."""
    return {"weight": weight, "estimator": estimator, "where": where} if weight else None


def entropy(bonus: float, top_share: float = 1.0) -> dict[str, object] | None:
    """Returns the entropy term; None if it would do nothing."""
    return {"bonus": bonus, "top_share": top_share} if bonus or top_share != 1.0 else None


def put_batch(draft: Draft, prompts: int, parts: int, passes: int, check: int, names: tuple[str, ...]) -> int:
    """Sets the batch, and the updates on each, of a trainer that cuts a sampled batch into parts.

    Every update here sees its whole batch. A batch of one part has the other trainer's prompts an update, number of
    updates and gradient work; its samples are newer.

    Args:
        draft: Configuration to write to.
        prompts: Prompts of a sampled batch of the other trainer.
        parts: Parts that it is cut into, with one update each.
        passes: Times that each part is used.
        check: Optimiser steps between two validations; 0 for none that are counted so.
        names: Arguments that these come from.

    Returns:
        Updates on each batch.
    """
    batches = parts if prompts % parts == 0 else 1
    updates = passes * parts // batches
    draft.put("data.batch_size", prompts // batches, *names)
    draft.put("model.updates_per_batch", updates, *names)
    if parts > 1:
        title = draft.given.trainer.title
        head = f"{title} cuts {prompts} sampled prompts into {parts} parts, an update each; an update here sees all of them"
        small = (
            "the same prompts an update and the same gradient work, on samples of newer weights",
            prompts // parts,
            passes,
        )
        large = (
            f"samples as old as {title}'s, {parts} times the gradient work and the prompts of an update",
            prompts,
            passes * parts,
        )
        choices = [
            (why, _flags(batch, each, check)) for why, batch, each in ([small, large] if batches > 1 else [large])
        ]
        beside = [line for why, flags in choices for line in (f"{why}:", f"  {flags}")]
        draft.above["model.updates_per_batch"] = [f"{head}. The first of these is written:", *beside]
        draft.notes.append(f"{head}. Written is {choices[0][1]}: {choices[0][0]}; the choice stands beside it")
    return updates


def _flags(batch: int, updates: int, check: int) -> str:
    every = f" --trainer.val_check_interval {max(1, check // updates)}" * bool(check)
    return f"--data.batch_size {batch} --model.updates_per_batch {updates}{every}"


def put_devices(draft: Draft, devices: int, nodes: int, names: Sequence[str]) -> None:
    """Holds the run to what its engine takes, and says how it runs on the GPUs of the file.

    Args:
        draft: Configuration to write to; its engine is set.
        devices: GPUs of each node.
        nodes: Number of nodes.
        names: Arguments that these come from.
    """
    engine = draft.settings["model.engine"][0]
    alone = isinstance(engine, dict) and engine["class_path"] == "VLLMEngine"
    if alone:
        draft.put("trainer.devices", 1, *names)
    if (total := devices * nodes) == 1:
        return
    flags = f"--trainer.devices {devices} --trainer.strategy ddp" + f" --trainer.num_nodes {nodes}" * (nodes > 1)
    only = "the file says trainer.devices: 1, to be tried on one; " * alone
    batch = draft.settings["data.batch_size"][0]
    fits = isinstance(batch, int) and batch % total == 0
    draft.notes.append(
        f"{total} GPUs: {only}for all of them {flags}. Each holds the whole policy; --trainer.strategy sharded shares it out"
        + f"; data.batch_size {batch} must be a multiple of {total}" * (not fits)
    )


def put_loggers(
    draft: Draft, asked: Sequence[str], name: str, silent: Sequence[str], project: str, run: str | None
) -> None:
    """Adds the loggers to those of the baseline.

    Args:
        draft: Configuration to write to.
        asked: Names of the loggers.
        name: Argument that names them.
        silent: Names that ask for nothing that is not here anyway.
        project: Project in Weights & Biases.
        run: Argument with the name of the run in Weights & Biases; null if the file does not give it.
    """
    loggers = []
    named = {"name": draft.given[run]} if run else {}
    if run and "wandb" not in asked:
        draft.lose(run, "not here, because the name of a run is its folder: --run_dir")
    for each in asked:
        if each == "wandb":
            loggers.append(made("WandbLogger", save_dir=".", project=project, **named, log_model=False))
        elif each == "tensorboard":
            loggers.append(made("TensorBoardLogger", save_dir=".", name="tensorboard"))
        elif each not in silent:
            draft.lose(name, f"write --trainer.logger+ with a logger of Lightning: '{each}' is not converted")
    if loggers:
        draft.put("trainer.logger+", loggers if len(loggers) > 1 else loggers[0], name)


def source(place: str, split: str = "train", name: str | None = None, limit: int | None = None) -> object | None:
    """Returns the prompts of a data set: a name on the hub, a file, or a local folder, of `save_to_disk` or of other files.

    Args:
        place: Name or path of the data set.
        split: Split to read, where the data set has any.
        name: Configuration of the data set; null if it has one.
        limit: Number of prompts to read; null reads all.

    Returns:
        What `data.train` takes; None if the data set has no splits and another one than `train` is asked for.
    """
    path, some = Path(place), {} if limit is None else {"limit": limit}
    single = path.is_file() or path.suffix in ENDINGS or (is_saved(path) and not splits(path))
    if single and split != "train":
        return None
    if single or is_saved(path):
        of_split = {} if single or split == "train" else {"split": split}
        return made("FilePrompts", path=place, **of_split, **some) if of_split or some else place
    if not path.exists() and not on_hub(place) and split == "train" and name is None and not some:
        return place  # what it is shows where it is
    return made("HubPrompts", path=place, split=split, name=name, **some)


def by_name(places: Sequence[str]) -> dict[str, str]:
    """Names the files of a list by their stems, or by number where two stems are equal."""
    stems = [PurePosixPath(each).stem or "set" for each in places]
    twice = len(set(stems)) < len(stems)
    return {
        f"{stem}_{row}" if twice else stem: place for row, (stem, place) in enumerate(zip(stems, places, strict=True))
    }


def micro_tokens(prompt: int, completion: int) -> int:
    """Returns model.micro_tokens, which must hold the longest row."""
    return max(ROWS_OF_A_MICRO_BATCH, prompt + completion)


def whole_updates(of: float, each: float) -> int | None:
    """Returns how often `each` fits into `of`; None if that is no whole number of 1 or more."""
    ratio = of / each
    return int(ratio) if ratio >= 1 and ratio == int(ratio) else None
