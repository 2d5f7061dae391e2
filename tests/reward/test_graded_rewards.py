"""Rewards over rollouts: layout, the NaN of a failed grader, and each reward's own numbers."""

import math
import time

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward import procedural
from saerl_lightning.reward.format import FormatReward
from saerl_lightning.reward.length import LengthReward
from saerl_lightning.reward.math_reward import MathReward
from saerl_lightning.reward.reasoning_gym import ReasoningGymReward


def rollouts(texts: list[list[str]], lengths: list[int] | None = None) -> Rollouts:
    """Groups of completions; lengths are in tokens."""
    flat = [text for group in texts for text in group]
    completions = [[1] * n for n in lengths or [1] * len(flat)]
    blanks = [[0.0] * len(c) for c in completions]
    return Rollouts.pack([[0, 0]] * len(texts), completions, blanks, [False] * len(flat), flat, len(texts[0]), 0)


def prompt(answer: str) -> Prompt:
    return Prompt.asking(answer, "?", answer)


def test_math_reward_grades_each_completion_against_its_own_prompt():
    reward = MathReward(workers=1)
    scores = reward(
        [prompt("72"), prompt(r"\frac{1}{2}")],
        rollouts([["it is 72", r"\boxed{0.5}", "71"], [r"\boxed{0.5}", "72", r"\boxed{\frac{1}{2}}"]]),
    )
    assert scores.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert reward.name == "math"
    reward.close()


def test_math_reward_calls_a_hang_failed_not_wrong():
    reward = MathReward(workers=1, deadline_s=2.0)
    [scores] = reward([prompt("x^2")], rollouts([[r"\boxed{(x+y+z)^{300}}", r"\boxed{x \cdot x}"]])).tolist()
    assert math.isnan(scores[0])
    assert scores[1] == 1.0
    assert reward.pool.failures.total() == 1
    reward.close()


def test_plain_numbers_start_no_process_and_take_microseconds():
    reward = MathReward()
    texts = [[f"She has {i} of them, so the answer is {i}." for i in range(1000)]]
    start = time.process_time()
    scores = reward([prompt("7")], rollouts(texts))
    assert scores.sum() == 1
    assert not reward.pool._pool
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "prime_factorization", "word_ladder"])
def test_reasoning_gym_reward_uses_the_tasks_scorer(task):
    """word_ladder's own answer follows the hash seed, and countdown has many; their scorers take any right one."""
    reward = ReasoningGymReward(workers=1)
    prompts = ReasoningGymPrompts({task: 1.0}, 2).load()
    texts = [[p.answer, f"Well, <answer> {p.answer} </answer>", rf"\boxed{{{p.answer}}}", "junk", ""] for p in prompts]
    assert reward(prompts, rollouts(texts)).tolist() == [[1, 1, 1, 0, 0]] * 2
    assert not reward.pool.failures
    reward.close()


def test_a_scorer_that_gives_junk_a_hundredth_gives_it_0_here():
    [puzzle] = ReasoningGymPrompts({"fraction_simplification": 1.0}, 1).load()
    dataset, entry = procedural._entry(puzzle.grading)
    assert dataset.score_answer("junk", entry) == 0.01
    assert procedural.score(puzzle.grading, puzzle.text, "junk") == 0.0


def test_a_recipe_of_another_question_is_not_graded():
    reward = ReasoningGymReward(workers=1)
    [made] = ReasoningGymPrompts({"chain_sum": 1.0}, 1).load()
    other = Prompt.asking(made.uid, "1+1?", made.answer, grading=made.grading)
    assert reward([other], rollouts([[made.answer]])).isnan().all()
    reward.close()
    with pytest.raises(InputError, match="'2' has no reasoning-gym recipe"):
        reward([prompt("2")], rollouts([["2"]]))


def test_format_reward():
    texts = rollouts([["<answer>\n1\n</answer>", "so <answer>1</answer>", "1"]])
    assert FormatReward("<answer>.+</answer>")([prompt("1")], texts).tolist() == [[1, 1, 0]]
    assert FormatReward("<answer>.+</answer>", whole=True)([prompt("1")], texts).tolist() == [[1, 0, 0]]
    with pytest.raises(InputError, match=r"pattern '\(' is no regular expression: missing \)"):
        FormatReward("(")


def test_a_pattern_that_backtracks_without_end_is_stopped():
    """`re` would take 2^40 steps for the second completion."""
    reward = FormatReward("(a|a)*", whole=True, deadline_s=0.1)
    [scores] = reward([prompt("1")], rollouts([["aa", "a" * 40 + "!", "b"]])).tolist()
    assert scores[0] == 1.0
    assert math.isnan(scores[1])
    assert scores[2] == 0.0
    assert reward.overruns == 1
    with pytest.raises(InputError, match="deadline_s"):
        FormatReward("a", deadline_s=0)


def test_length_reward_is_daposs_slope():
    """DAPO eq. 13 with L_max 10 and L_cache 4: 0 up to 6, then -1/4 a token, -1 from 10 on."""
    scores = LengthReward(10, 4)([prompt("1")] * 2, rollouts([["", "", ""]] * 2, [1, 6, 7, 9, 10, 12]))
    torch.testing.assert_close(scores, torch.tensor([[0.0, 0.0, -0.25], [-0.75, -1.0, -1.0]]))
    for bad in (0, 11):
        with pytest.raises(InputError, match=f"buffer is {bad} and max_tokens 10"):
            LengthReward(10, bad)
