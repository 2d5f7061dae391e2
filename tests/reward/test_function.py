"""A user's own function as a reward: in both forms, refused at the door, and no costlier than the completion it fails on."""

import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.function import FunctionReward
from saerl_lightning.reward.reward import abstained, grade, weighted_sum
from saerl_lightning.training.metrics import reward_metrics

FUNCTIONS = '''
import asyncio
import json
import os
import time
from dataclasses import dataclass


@dataclass
class Mark:
    value: float


def accuracy(completions, prompts, solution, level, **columns):
    """TRL's form."""
    assert len(prompts) == len(completions) == len(columns["answer"])
    return [Mark(float(c == s)).value + 10 * float(l) for c, s, l in zip(completions, solution, level)]


def forgets(data_source, solution_str, ground_truth):
    float(solution_str == ground_truth)


def sometimes(completions):
    return [None if c == "3" else 1.0 for c in completions]


def nothing_right(completions):
    return [0.0 for _ in completions]


def above_mean(completions):
    """Compares the completions of a prompt."""
    numbers = [int(c) for c in completions]
    return [n - sum(numbers) / len(numbers) for n in numbers]


def logs_in_trl(completions, log_extra, log_metric, trainer_state=None):
    log_extra("lengths", [len(c) for c in completions])
    log_metric("longest", max(map(len, completions)))
    assert trainer_state is None
    return [float(len(c)) for c in completions]


def logs_by_name(completions, **columns):
    columns["log_metric"]("longest", 1)
    return [1.0 for _ in completions]


def by_step(completions, trainer_state):
    return [float(trainer_state.global_step) for _ in completions]


def in_a_library(completions):
    return [json.loads(c) for c in completions]


def only_long(completions, completion_ids):
    return [None if len(ids) < 2 else 1 for ids in completion_ids]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's form."""
    return {"score": float(solution_str == ground_truth), "from": data_source, "level": extra_info["level"]}


async def both_at_once(solution_str, ground_truth):
    await asyncio.sleep(0.5)
    if solution_str == "hang":
        await asyncio.sleep(3600)
    return solution_str == ground_truth


async def asleep(completions):
    await asyncio.sleep(0.01)
    return [float(len(c)) for c in completions]


def hangs(completions):
    if "hang" in completions:
        time.sleep(3600)
    return [1.0] * len(completions)


def dies(solution_str):
    if solution_str == "die":
        os._exit(3)
    return 1.0


def in_messages(completions, prompts):
    [[question]] = {tuple(message["content"] for message in each) for each in prompts}
    asked = 10 * (question == "?")
    return [float(len(each[0]["content"]) + (each[0]["role"] == "assistant") + asked) for each in completions]


def hangs_by_itself(completions):
    time.sleep(3600)


def negative_zero(completions):
    return [-0.0 if c == "zero" else None for c in completions]


def short(completions):
    return [1.0]


def words(completions):
    return ["1.0"] * len(completions)


def scoreless(solution_str):
    return {"acc": 1.0}


def neither(texts, answers):
    return [0.0 for _ in texts]


def both(completions, solution_str):
    return 0.0


def needs_more(completions, colour):
    return [0.0 for _ in completions]


class Accuracy:
    pass


number = 3
'''


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prompt(answer: str, level: float = 0.0) -> Prompt:
    return Prompt.asking(f"p{answer}", "?", answer, source="sums", labels={"level": level})


def rollouts(*groups: list[str], lengths: list[int] | None = None) -> Rollouts:
    texts = [text for group in groups for text in group]
    ids = [[1] * n for n in lengths or [1] * len(texts)]
    blank = [[0.0] * len(each) for each in ids]
    return Rollouts.pack([[0]] * len(groups), ids, blank, [False] * len(texts), texts, len(groups[0]), 0)


def scores(reward: FunctionReward, prompts: list[Prompt], *groups: list[str], **more) -> list[list[float]]:
    try:
        return reward(prompts, rollouts(*groups, **more)).tolist()
    finally:
        reward.close()


def test_trls_form_gets_each_row_with_its_own_columns(desk):
    reward = FunctionReward("my_rewards.py:accuracy", weight=0.5)
    assert scores(reward, [prompt("3", 1.0), prompt("4", 2.0)], ["3", "4"], ["4", "3"]) == [[11.0, 10.0], [21.0, 20.0]]
    assert reward.name == "accuracy" and reward.weight == 0.5 and reward.signature.form == "trl"


def test_verls_form_gets_one_completion(desk, monkeypatch):
    monkeypatch.syspath_prepend(desk)
    for place in ("my_rewards.compute_score", "my_rewards:compute_score", "my_rewards.py:compute_score"):
        reward = FunctionReward(place, name="exact")
        assert scores(reward, [prompt("3", 2.0), prompt("4", 2.0)], ["3", "4"], ["4", "3"]) == [[1.0, 0.0], [1.0, 0.0]]
        assert reward.name == "exact" and reward.signature.form == "verl"


def test_none_adds_nothing_and_token_ids_are_the_completions_own(desk):
    reward = FunctionReward("my_rewards.py:only_long")
    assert scores(reward, [prompt("3")], ["a", "bc", "d"], lengths=[1, 2, 3]) == [[0.0, 1.0, 1.0]]


def test_none_is_left_out_of_the_mean_and_adds_nothing(desk):
    """None, 1, 1: the mean is 1, not 2/3; a zero that was given counts."""
    asked, texts = [prompt("3")], rollouts(["a", "bc", "d"], lengths=[1, 2, 3])
    reward = FunctionReward("my_rewards.py:only_long", weight=-2.0)
    grades = grade([reward], asked, texts)
    total = weighted_sum([reward], grades)
    assert total.tolist() == [[0.0, -2.0, -2.0]]
    logged = reward_metrics(grades, total)
    assert logged["reward/only_long/mean"] == 1.0 and logged["reward/only_long/std"] == 0.0
    assert logged["reward/only_long/failed_frac"] == 0.0 and logged["reward/mean"] == pytest.approx(-4 / 3)
    reward.close()
    zero = FunctionReward("my_rewards.py:negative_zero")
    grades = grade([zero], asked, rollouts(["zero", "none", "zero"]))
    assert abstained(grades["negative_zero"]).tolist() == [[False, True, False]]
    assert reward_metrics(grades, grades["negative_zero"])["reward/negative_zero/mean"] == 0.0
    zero.close()


def test_trls_conversational_rows_come_as_messages(desk):
    """Three letters, the role and the question: 3 + 1 + 10."""
    talk = replace(prompt("3"), columns={"prompt": [{"role": "user", "content": "?"}]})
    assert scores(FunctionReward("my_rewards.py:in_messages"), [talk], ["abc"]) == [[14.0]]
    assert scores(FunctionReward("my_rewards.py:in_messages", messages=True), [prompt("3")], ["abc"]) == [[14.0]]
    assert scores(FunctionReward("my_rewards.py:asleep", messages=False), [talk], ["abc"]) == [[3.0]]
    assert scores(FunctionReward("my_rewards.py:asleep"), [replace(talk, columns={"prompt": "?"})], ["abc"]) == [[3.0]]


def test_a_service_that_is_down_costs_two_deadlines_a_prompt_and_not_one_a_completion(desk):
    reward = FunctionReward("my_rewards.py:hangs_by_itself", deadline_s=0.5, workers=2)
    begin = time.monotonic()
    [[*given]] = scores(reward, [prompt("3")], ["a"] * 12)
    assert all(map(math.isnan, given))
    assert reward.failures.kinds == {
        "ran past its deadline of 0.5 s": 2,
        "ran past its deadline, as others of its prompt did,": 10,
    }
    assert time.monotonic() - begin < 6  # one after another, two at a time, they would take 3 s more, and new processes


def test_async_calls_run_together_and_one_that_hangs_costs_itself(desk):
    reward = FunctionReward("my_rewards.py:both_at_once", workers=1, deadline_s=3.0)
    assert reward([prompt("1")], rollouts(["1"])).tolist() == [[1.0]]  # the process has started
    begin = time.monotonic()
    assert scores(reward, [prompt("1")], ["1"] * 40) == [[1.0] * 40]
    assert time.monotonic() - begin < 10  # one after another they would take 20 s
    [given] = scores(reward, [prompt("1")], ["1", "hang", "2"])
    assert math.isnan(given[1]) and (given[0], given[2]) == (1.0, 0.0)
    assert "ran past its deadline of 3 s for the prompt 'p1' and the completion 'hang'" in reward.last_failure
    assert scores(FunctionReward("my_rewards.py:asleep"), [prompt("1")], ["a", "bc"]) == [[1.0, 2.0]]


@pytest.mark.parametrize(("name", "warned"), [("forgets", 1), ("sometimes", 0), ("nothing_right", 0)])
def test_a_function_that_forgets_its_return_is_told_once(desk, caplog, name, warned):
    reward = FunctionReward(f"my_rewards.py:{name}")
    for _ in range(2):
        scores(reward, [prompt("3")], ["3", "4"])
    said = "my_rewards.py:forgets returned None for all 2 completions"
    assert sum(said in message for message in caplog.messages) == warned == len(caplog.messages)


def test_an_exception_costs_the_completion_that_caused_it_and_is_told_with_it(desk, caplog):
    reward = FunctionReward("my_rewards.py:above_mean")
    first, second = scores(reward, [prompt("3"), prompt("4")], ["1", "2", "6"], ["1", "six", "3"])
    assert first == [-2.0, -1.0, 3.0]
    assert math.isnan(second[1]) and (second[0], second[2]) == (-1.0, 1.0)  # compared with each other, not alone
    assert re.fullmatch(
        r"my_rewards.py:above_mean raised ValueError\(.*'six'.*\) \(my_rewards.py, line \d+\) for the prompt 'p4' and the "
        r"completion 'six'; it counts as not graded, not as wrong \(later ones are only counted\)",
        caplog.messages[0],
    )
    assert reward.failures.kinds == {"raised ValueError": 1}


def test_functions_that_log_in_trl_run_as_they_are(desk):
    assert scores(FunctionReward("my_rewards.py:logs_in_trl"), [prompt("3")], ["a", "bc"]) == [[1.0, 2.0]]
    assert scores(FunctionReward("my_rewards.py:logs_by_name"), [prompt("3")], ["a", "bc"]) == [[1.0, 1.0]]
    with pytest.raises(InputError, match=r"needs 'trainer_state', which is that of TRL's trainer.*trainer_state=None"):
        scores(FunctionReward("my_rewards.py:by_step"), [prompt("3")], ["a"])


def test_an_exception_within_the_standard_library_is_told_with_the_users_line(desk):
    """Before, the place was the library's: (decoder.py, line 355)."""
    reward = FunctionReward("my_rewards.py:in_a_library")
    scores(reward, [prompt("3")], ["no json"])
    line = 1 + FUNCTIONS[: FUNCTIONS.index("return [json.loads")].count("\n")
    assert f"(my_rewards.py, line {line})" in reward.last_failure


def test_a_hang_and_a_crash_cost_one_completion(desk):
    [hung] = scores(FunctionReward("my_rewards.py:hangs", deadline_s=2.0), [prompt("3")], ["a", "hang", "b"])
    assert [math.isnan(each) for each in hung] == [False, True, False]
    reward = FunctionReward("my_rewards.py:dies")
    [died] = scores(reward, [prompt("3")], ["a", "die", "b"])
    assert [math.isnan(each) for each in died] == [False, True, False]
    assert reward.last_failure.startswith("killed its process (exit code 3) for the prompt 'p3'")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("my_rewards.py:acuracy", "my_rewards.py has no 'acuracy'; did you mean 'accuracy'?"),
        ("others.py:accuracy", "there is no file 'others.py'"),
        ("broken.py:accuracy", "can't be imported: ModuleNotFoundError: No module named 'nowhere' (broken.py, line 2)"),
        ("unfinished.py:accuracy", "can't be imported: SyntaxError: '(' was never closed"),
        ("leaves.py:accuracy", "can't be imported: SystemExit: 0"),
        (
            "nowhere.accuracy",
            "it can't be imported: ModuleNotFoundError: No module named 'nowhere' in this folder or installed; write the "
            "path of its file, as nowhere.py:accuracy",
        ),
        ("accuracy", "write my_rewards.py:accuracy, or my_package.rewards.accuracy"),
        ("my_rewards.py:", "write my_rewards.py:accuracy"),
        ("my_rewards.py:neither", "its parameters are (texts, answers); write def accuracy(completions, prompts"),
        ("my_rewards.py:both", "its parameters are (completions, solution_str); write def accuracy("),
        ("my_rewards.py:Accuracy", "it is a class, no function; write def accuracy("),
        ("my_rewards.py:number", "it is a int, no function"),
    ],
)
def test_what_is_no_reward_is_refused_at_the_door_with_both_forms(desk, place, said):
    (desk / "broken.py").write_text("\nimport nowhere\n")
    (desk / "unfinished.py").write_text("accuracy = (\n")
    (desk / "leaves.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(InputError) as refused:
        FunctionReward(place)
    assert said in str(refused.value)
    if "parameters" in said:
        assert "TRL's form" in str(refused.value) and "verl's form" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "my_rewards.py:short returned 1 rewards for 2 completions; return one a completion"),
        ("words", "returned '1.0' (str); return a list of numbers"),
        ("scoreless", "returned a dict without 'score', {'acc': 1.0} (dict); return {'score': number}"),
        ("needs_more", "needs 'colour', and no prompt has it; the columns are answer, data_source, "),
    ],
)
def test_a_wrong_length_or_type_stops_the_run(desk, name, said):
    with pytest.raises(InputError) as refused:
        scores(FunctionReward(f"my_rewards.py:{name}"), [prompt("3")], ["a", "b"])
    assert said in str(refused.value)


SCRIPT = """
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.function import FunctionReward

SCALE = 2

def doubled(completions, answer):
    return [SCALE * float(c == a) for c, a in zip(completions, answer)]

print("once")
reward = FunctionReward(doubled)
rollouts = Rollouts.pack([[0]], [[1], [1]], [[0.0], [0.0]], [False, False], ["3", "4"], 2, 0)
print(reward.name, reward([Prompt("p", ({"role": "user", "content": "?"},), "3")], rollouts).tolist())
"""


def test_a_function_of_the_script_or_of_a_cell_itself_is_taken(tmp_path):
    """Without a guard, and without `close`: a process that stayed would keep the pipe open, and this test waiting."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for given in ({"args": [sys.executable, "train.py"]}, {"args": [sys.executable, "-"], "input": SCRIPT}):
        done = subprocess.run(**given, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        assert done.stdout == "once\ndoubled [[2.0, 0.0]]\n"


def test_the_columns_of_the_whole_pool_are_what_is_asked_for(desk):
    """A batch may come from a set without the column; its rows get None."""
    reward = FunctionReward("my_rewards.py:needs_more")
    coloured = Prompt.asking("c", "?", "3", labels={"colour": 1.0})
    reward.require([prompt("3"), coloured])
    assert torch.equal(reward([prompt("3")], rollouts(["a", "b"])), torch.zeros(1, 2))
    reward.close()


def test_columns_that_a_function_does_not_ask_for_are_not_read():
    class Lazy(dict):
        def __getitem__(self, name):
            assert name != "heavy", "read although nobody asked for it"
            return super().__getitem__(name)

    asked = [Prompt.asking("p", "?", "1", columns=Lazy(heavy="x" * 9, unit="km"))]
    rollouts = Rollouts.pack([[1]], [[2]], [[-1.0]], [False], ["1"], 1, 0)

    def by_unit(completions, unit):
        return [float(each == "km") for each in unit]

    def score(solution_str, unit):
        return float(unit == "km")

    for function in (by_unit, score):
        reward = FunctionReward(function)
        try:
            reward.require(asked)
            assert reward(asked, rollouts).tolist() == [[1.0]]
        finally:
            reward.close()
