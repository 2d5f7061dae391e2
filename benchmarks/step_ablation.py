"""What each switch of a step buys: our side alone, every switch off in turn beside all on, and all off.

Every setting is a process of its own. They run in rounds of at most four, in lockstep, and each round has its own "all
on", to which the others are compared: settings of different rounds are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rich.table import Table
from step_sides import Medians, in_lockstep, own_command
from workload import Workload, write_prompts

from saerl_lightning.training.shortcuts import Shortcuts

ALL_ON, ALL_OFF = "all on", "all off"
SHORTCUTS = [field.name for field in fields(Shortcuts)]
NOT_FUSED = "--model.engine.fused=false"


@dataclass(frozen=True)
class Round:
    """Settings that are compared with each other.

    Args:
        settings: switches that are off, one a setting, or `ALL_OFF`.
        flat: whether half of the groups earn one constant reward.
        uneven: see `Workload`.
    """

    settings: tuple[str, ...]
    flat: bool = False
    uneven: bool = False

    def of(self, work: Workload, zero_variance: float) -> Workload:
        """The round's work."""
        return replace(work, zero_variance=zero_variance if self.flat else 0.0, uneven=self.uneven)


# Where all rows have one length and come in one part, sorting and overlap have nothing to do: they get uneven work.
ROUNDS = (
    Round(("fused", "shared_prefix", "tiled_head")),
    Round(("lean_layers", "reuse_forward", ALL_OFF)),
    Round(("skip_zero_advantage", ALL_OFF), flat=True),
    Round(("overlap_grading", "sort_by_length"), uneven=True),
)


@dataclass(frozen=True)
class AblationRow:
    """One setting beside all switches on."""

    model: str
    prompt_tokens: int
    work: str
    off: str
    steps: int
    ours: Medians
    all_on: Medians

    @property
    def ratio(self) -> float:
        """How much longer a step takes than with all switches on."""
        return self.ours.seconds / self.all_on.seconds

    @property
    def memory_ratio(self) -> float:
        """Its peak memory as a multiple of that with all switches on."""
        return self.ours.peak_gb / self.all_on.peak_gb


def flags(setting: str) -> list[str]:
    """The command-line flags of a setting."""
    if setting == ALL_ON:
        return []
    if setting == ALL_OFF:
        return ["--model.shortcuts=none", NOT_FUSED]
    kept = ", ".join(name for name in SHORTCUTS if name != setting)
    return [NOT_FUSED if setting == "fused" else f"--model.shortcuts=[{kept}]"]


def ablate(
    work: Workload, policy: Path, data: str | None, folder: Path, zero_variance: float
) -> Iterator[list[AblationRow]]:
    """Yields the rows of each round as soon as it is done, its "all on" first.

    Args:
        work: the even work.
        policy: folder of the policy.
        data: JSON lines to take questions from, null for reasoning-gym.
        folder: to be made, for prompts, runs and logs.
        zero_variance: share of flat groups in the round that has some.
    """
    folder.mkdir()
    for number, each in enumerate(ROUNDS):
        place = folder / str(number)
        place.mkdir()
        own = each.of(work, zero_variance)
        prompts = write_prompts(place / "prompts.jsonl", policy, data, own)
        commands = {
            name: own_command(own, policy, prompts, place / f"run-{name}", flags(name))
            for name in (ALL_ON, *each.settings)
        }
        print(f"{own.title} work, off in turn: {', '.join(each.settings)}", flush=True)
        done = in_lockstep(own, commands, place)
        yield [
            AblationRow(own.model, own.prompt_tokens, own.title, name, own.steps, medians, done[ALL_ON])
            for name, medians in done.items()
        ]


def ablation_table(rows: Sequence[AblationRow]) -> Table:
    """One line a setting, one section a round."""
    result = Table(title="our GRPO step without one switch, medians (seconds; peak memory in GB)")
    columns = ("step", "x all on", "generate", "score", "forward+backward", "optimizer", "rest", "peak", "x all on")
    for column in ("model", "prompt", "work", "off", *columns):
        justify = "left" if column in ("model", "work", "off") else "right"
        result.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        if row.off == ALL_ON:
            result.add_section()
        shown = [f"{row.ours.shown(name):.2f}" for name in ("generate", "score", "forward+backward", "optimizer")]
        result.add_row(
            row.model,
            str(row.prompt_tokens),
            row.work,
            "nothing" if row.off == ALL_ON else "everything" if row.off == ALL_OFF else row.off,
            f"{row.ours.seconds:.2f}",
            f"{row.ratio:.2f}",
            *shown,
            f"{row.ours.rest:.2f}",
            f"{row.ours.peak_gb:.2f}",
            f"{row.memory_ratio:.2f}",
        )
    return result
