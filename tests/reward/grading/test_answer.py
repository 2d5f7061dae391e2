"""Which answers are right, and which votes are one."""

import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.reward.grading.answer import given_answer, last_answer, quick_verdict, symbolic_verdict


def verdict(gold: str, text: str) -> float:
    quick = quick_verdict(gold, text)
    return symbolic_verdict(gold, text) if quick is None else quick


def test_given_answer_prefers_tags_then_box_then_all():
    assert given_answer(r"\boxed{1} <answer>2</answer>") == "2"
    assert given_answer(r"so \boxed{1}") == "1"
    assert given_answer("  abc def ") == "abc def"
    assert given_answer("<answer></answer> 5") == ""


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        (r"\boxed{72.0}", "72"),
        ("<answer>1,072</answer>", "1072"),
        ("is 72", "72"),
        (r"\boxed{-0.0}", "0"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        ("no idea", ""),
    ],
)
def test_equal_votes_are_equal_strings(text, vote):
    assert last_answer(text) == vote


@given(st.decimals(-(10**20), 10**20, allow_nan=False, places=3))
def test_a_number_is_read_exactly_in_every_spelling(number):
    for spelling in (f"{number:f}", f"{number:,f}", f"${number:f}$", f" {number:f}. "):
        assert quick_verdict(f"{number:f}", rf"\boxed{{{spelling}}}") == 1.0
        assert quick_verdict(f"{number:f}", f"so it is {number + Decimal('0.001'):f}") == 0.0


# gold, completion, equal, whether strings and numbers settle it
VERDICTS = [
    ("72", "48+24 = 72", 1, True),
    ("72", "The answer is 73.", 0, True),
    ("72", "I don't know", 0, True),
    ("72", "", 0, True),
    ("1,000", r"\boxed{\$1000.00}", 1, True),
    ("72", r"first \boxed{71}, no: \boxed{72}", 1, True),
    ("71", r"first \boxed{71}, no: \boxed{72}", 0, True),
    ("72", r"\boxed{72 \text{ apples}}", 1, False),
    ("72", "<answer>The answer is 72 apples</answer>", 1, False),
    ("0.5", "it is 1/2", 1, False),
    (r"\frac{1}{2}", r"\boxed{0.5}", 1, False),
    (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", 1, True),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0, False),
    (r"\frac{1}{2}", r"So $x = \frac{1}{2}$.", 1, False),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{\frac{3}{2\sqrt{3}}}", 1, False),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", 1, False),
    (r"\{1,2\}", r"\boxed{\{2, 1\}}", 1, False),
    ("3", r"\boxed{1,2,3}", 0, False),
    ("[0,1)", r"\boxed{\left[0, 1\right)}", 1, True),
    ("[0,1)", r"\boxed{[0,1]}", 0, False),
    ("(-1,0]", r"\boxed{(-\frac{2}{2}, 0]}", 1, False),
    ("x^2+1", r"\boxed{1+x^2}", 1, False),
    ("x^2+1", r"\boxed{1-x^2}", 0, False),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", 1, True),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}", 0, False),
    (r"50\%", r"\boxed{50}", 1, False),
    (r"\text{even}", r"\boxed{even}", 1, True),
    (r"\text{even}", r"\boxed{\text{odd}}", 0, False),
    ("B", "The correct option is (B).", 1, False),
    ("B", r"\boxed{\text{(B)}}", 1, False),
    (r"\text{(B)}", r"\boxed{B}", 1, False),
    ("E", "Answer: E", 1, False),
    ("E", r"\boxed{D}", 0, False),
    ("E", "2.718", 0, False),
]


@pytest.mark.parametrize(("gold", "text", "equal", "quick"), VERDICTS)
def test_verdicts(gold, text, equal, quick):
    """Where no formula must be understood, no process is asked; a verdict in process is the grader's."""
    assert quick_verdict(gold, text) in ((equal,) if quick else (equal, None))
    if text:
        assert symbolic_verdict(gold, text) == equal


def test_an_unreadable_gold_answer_makes_no_one_wrong():
    with pytest.raises(ValueError, match="can't read the gold answer"):
        symbolic_verdict(r"\text{}", r"\boxed{3}")


def test_graders_import_no_torch():
    modules = (
        "from saerl_lightning.reward import procedural, workers; from saerl_lightning.reward.grading import answer"
    )
    code = f"{modules}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
