"""The table of graded pairs that `benchmarks/grading.py` prints: each verdict is the one that a person wrote down."""

from collections import Counter
from pathlib import Path

import pytest

from saerl_lightning.reward.grading.answer import prepare_symbolic, quick_verdict, symbolic_verdict

TABLE = Path(__file__).parents[3] / "benchmarks" / "grading.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()]


def test_the_table_covers_every_kind():
    kinds = Counter(row[0] for row in ROWS)
    assert len(ROWS) >= 600
    assert len({tuple(row[:3]) for row in ROWS}) == len(ROWS), "a pair stands twice"
    assert all(count >= 10 for count in kinds.values())
    assert {row[3] for row in ROWS} == {"yes", "no"}


@pytest.mark.parametrize("kind", sorted({row[0] for row in ROWS}))
def test_every_pair_is_graded_right(kind):
    """The verdict in process, where there is one, is the grader's too."""
    prepare_symbolic()
    wrong = []
    for _, gold, answer, match in [row for row in ROWS if row[0] == kind]:
        text = answer.replace("␤", "\n")
        quick, verdict = quick_verdict(gold, text), symbolic_verdict(gold, text)
        if verdict != (match == "yes") or quick not in (None, verdict):
            wrong.append((gold, answer, match))
    assert not wrong
