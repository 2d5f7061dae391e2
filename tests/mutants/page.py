"""What came of the mutants: one line for the terminal, a page for the site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutants.generate import Mutant


@dataclass(frozen=True)
class Verdict:
    """A mutant and what came of it.

    Args:
        mutant: the change.
        reason: why it makes no difference; None for one that was tested.
        outcome: killed, timed out, survived or equivalent.
    """

    mutant: Mutant
    reason: str | None
    outcome: str


def summary(verdicts: Sequence[Verdict]) -> str:
    """The figures."""
    tested = [each for each in verdicts if each.outcome != "equivalent"]
    dead = [each for each in tested if each.outcome != "survived"]
    late = sum(each.outcome == "timed out" for each in tested)
    share = len(dead) / max(1, len(tested))
    return (
        f"{len(verdicts)} mutants drawn, {len(verdicts) - len(tested)} equivalent and left out; "
        f"{len(dead)} of {len(tested)} died ({share:.1%}), {late} of them by running too long"
    )


def page(verdicts: Sequence[Verdict], seed: int) -> str:
    """The page of the site, in Markdown."""
    return "\n".join(
        [
            "# Mutants",
            "",
            "Written by `make mutants`: small changes to the code, one at a time, by cosmic-ray's operators, and whether "
            "the tests that belong to the module notice. `tests/mutants/modules.toml` names modules and tests.",
            "",
            f"**{summary(verdicts)}.** Seed {seed}.",
            "",
            *_table(verdicts),
            "",
            "## Survivors",
            "",
            *_changes([each for each in verdicts if each.outcome == "survived"]),
            "",
            "## Equivalent",
            "",
            "Changes that make no difference, as `tests/mutants/equivalent.toml` has them.",
            "",
            *_changes([each for each in verdicts if each.outcome == "equivalent"]),
            "",
        ]
    )


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in verdicts:
        counts[each.mutant.module][each.outcome] += 1
    columns = ("killed", "timed out", "survived", "equivalent")
    rows = [(f"`{module}`", *(str(found[name]) for name in columns)) for module, found in sorted(counts.items())]
    return [f"| {' | '.join(row)} |" for row in (("module", *columns), ("---", *["--:"] * len(columns)), *rows)]


def _changes(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return ["None."]
    lines = []
    for each in sorted(verdicts, key=lambda each: (each.mutant.module, each.mutant.line)):
        lines += [f"`{each.mutant.module}`, line {each.mutant.line}" + (f": {each.reason}" if each.reason else ""), ""]
        lines += ["```diff", f"- {each.mutant.before}", f"+ {each.mutant.after}", "```", ""]
    return lines[:-1]
