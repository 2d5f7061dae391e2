"""Where a text says its answer, and that looking for it takes time linear in the text."""

import time

import pytest

from saerl_lightning.reward.grading.answer import last_answer, quick_verdict
from saerl_lightning.reward.grading.marks import boxed, find_answer, tagged


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : x > \frac{a}{b}\right.}", r"\left\{x : x > \frac{a}{b}\right."),  # unpaired escaped brace
        (r"\fbox{3}", None),
        (r"\boxed{4} then \boxed{\frac{1", "4"),  # truncated
        (r"\boxed{\boxed{7}}", "7"),
        (r"} \boxed{8} {", "8"),
        (r"\boxed{", None),
        ("5", None),
    ],
)
def test_the_last_box_is_read_with_its_braces(text, content):
    assert boxed(text) == content


def test_the_last_answer_tags_are_read():
    assert tagged("<answer> 1 </answer><answer>\n2\n</answer>") == "2"
    assert tagged("<answer>1") is None
    assert tagged("</answer> 1 <answer>") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("first 3, then 1,234.50 dollars.", ("1,234.50 dollars",)),
        ("3-4", ("3-4",)),
        ("it is -4.", ("-4",)),
        ("about 3/4 of it", ("3/4",)),
        ("costs $.50", ("$.50",)),
        ("costs $12 and then $13.", ("$13",)),
        ("the answer is $\\frac{3}{4}$, since $x > 0$", (r"\frac{3}{4}",)),
        ("The area is 7 km^2.", ("7 km^2",)),
        (r"\boxed{1}. No: <answer>2</answer>", ("2",)),
        (r"<answer>2</answer> or rather \boxed{1}", ("1",)),
        (r"<answer>so \boxed{4}</answer>", ("4",)),
        (r"\boxed{11}. Oops. The final answer is 12.", ("12",)),
        (r"\boxed{11} is the answer: eleven", ("11",)),
        ("<think>\\boxed{1}</think> So it is 2.", ("2",)),
        ("<think>\\boxed{1}</think> Done.", ("1",)),
        (r"\boxed{1}, \boxed{2} and \boxed{3}", ("1", "2", "3")),
        (r"\boxed{1}. \boxed{2}", ("2",)),
        ("- 5 apples", ("5",)),
        ("none", ("none",)),
    ],
)
def test_the_marked_answer_of_a_text_is_found(text, parts):
    assert find_answer(text).parts == parts


WORST = {
    "unclosed boxes": r"\boxed{",
    "closed boxes": r"\boxed{1} and ",
    "braces": "{",
    "backslashes": "\\",
    "dollars": "$",
    "display math": r"\[ x",
    "inline math": r"\( x",
    "statements": "the answer is ",
    "tags": "<answer>",
    "dashes": "- ",
    "numbers": "1 + ",
    "commas": "1, ",
    "words": "a",
    "spaced words": "ab ",
    "phantoms": r"\phantom{",
    "text": r"\text{a",
    "brackets": "(",
    "signs": r"\pm 1,",
    "units": "1 cm ",
    "fractions": r"\frac1",
    "braced": r"\{1, ",
}


@pytest.mark.parametrize("unit", WORST.values(), ids=WORST)
@pytest.mark.parametrize("wrap", ["%s", r"\boxed{%s}", "<answer>%s</answer>"])
def test_no_text_takes_long(unit, wrap):
    """Ten thousand characters of the worst: quadratic code took minutes for some of them (24 s for 5,000 open boxes)."""
    text = wrap % (unit * (10_000 // len(unit)))
    start = time.process_time()
    for gold in ("7", r"\frac{x}{2}", "1, 2", r"\text{even}", "B"):
        quick_verdict(gold, text)
    last_answer(text)
    assert time.process_time() - start < 3.0
