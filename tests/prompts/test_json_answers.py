"""Answers that a prompts file holds as JSON numbers and lists are graded as what they say."""

import json

import pytest

from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.reward.grading.answer import prepare_symbolic, symbolic_verdict

GRADED = [
    ("[100, 200]", "200, 100", True),
    ("[100, 200]", "100, 300", False),
    ('[0.5, "2"]', r"\boxed{2, \frac{1}{2}}", True),
    ("0.00001", r"\boxed{0.00001}", True),
    ("0.00001", r"\boxed{0.00002}", False),
    ("1e-5", r"\boxed{0.00001}", True),
    ("4500000000000000000000000000000000.0", r"4.5 \times 10^{33}", True),
    ("12.50", "12.5", True),
    ("1000000000000000000001", "1000000000000000000001", True),
    ("1000000000000000000001", "1000000000000000000000", False),
]


@pytest.mark.parametrize(("answer", "text", "right"), GRADED)
def test_a_json_answer_is_graded_by_its_spelling_in_the_file(tmp_path, answer, text, right):
    prepare_symbolic()
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": {json.dumps("q")}, "answer": {answer}}}\n')
    [prompt] = FilePrompts(str(file)).load()
    assert symbolic_verdict(prompt.answer, text) == right
