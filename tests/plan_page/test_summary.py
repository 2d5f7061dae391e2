"""The printed summary, whole, beside a golden text; and tables that rich's markup must not touch."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from saerl_lightning.plan_page import tables
from saerl_lightning.plan_page.comparison import compare
from saerl_lightning.plan_page.tables import Table, show

GOLDEN = Path(__file__).parent / "golden"


def printed(shown) -> str:
    console = Console(file=StringIO(), width=100)
    show(shown, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def test_the_summary_is_the_golden_one(planned):
    assert printed(tables.summary(planned)) == (GOLDEN / "summary.txt").read_text()


def test_the_comparison_is_the_golden_one(planned):
    ledger = planned.ledger
    batch = ledger.batch.copy()
    batch[[2, 57]], batch[[3, 4]] = batch[[57, 2]], [-1, 13]
    fate = ledger.fate.copy()
    fate[3] = "not served"
    other = replace(ledger, digest="fedcba9876543210", batch=batch, fate=fate)
    assert printed(tables.comparison(compare(other, ledger))) == (GOLDEN / "comparison.txt").read_text()


def test_brackets_in_a_prompt_are_no_markup_and_long_tables_say_what_they_leave_out():
    rows = [(f"p{i}", "[bold]$[0, 1][/red]$") for i in range(60)]
    text = printed([Table("t", "T", ("uid", "text"), rows, left=2)])
    assert text.count("[bold]$[0, 1][/red]$") == 40 and text.endswith("… and 20 more\n")


def test_numbers_are_readable():
    assert [tables.number(x) for x in (0.12345, 1.2345, 12.345, 1234567.0, 1 - 1e-12, float("nan"))] == [
        "0.123", "1.23", "12.3", "1,234,567", "1", "–",
    ]  # fmt: skip
    metrics = {"kept": 5.0, "r": 0.5, "r_low": 0.4, "r_high": 0.6, "alone_low": 1.0}
    folded = {name: tables.interval(*ends) for name, _, ends in tables.with_intervals(metrics)}
    assert folded == {"kept": "–", "r": "0.400 to 0.600", "alone_low": "–"}  # no `alone`: it is a name of its own
