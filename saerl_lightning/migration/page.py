"""Tables of docs/coming_from.md: each argument of another trainer with its counterpart here, or the reason for none."""

from __future__ import annotations

from saerl_lightning.migration.arguments import Trainer


def table(trainer: Trainer) -> str:
    """Returns a trainer's arguments as two tables of Markdown: those with a counterpart, and the reasons for none."""
    carried = [each for each in trainer.table if each.ours]
    rows = [f"| `{each.name}` | `{each.ours}` | {_cell(each.how)} |" for each in carried]
    reasons: dict[str, list[str]] = {}
    for each in trainer.table:
        if not each.ours:
            reasons.setdefault(each.how, []).append(f"`{each.name}`")
    lost = [f"| {', '.join(names)} | {_cell(why)} |" for why, names in reasons.items()]
    return "\n".join(
        [
            f"| {trainer.title} | here | conversion |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"| {trainer.title} | instead |",
            "| --- | --- |",
            *lost,
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def filled(page: str, trainer: Trainer) -> str:
    """Returns the page with a trainer's table between its marks."""
    start, end = f"<!-- {trainer.title} -->", f"<!-- /{trainer.title} -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{table(trainer)}\n{end}{rest.partition(end)[2]}"
