"""What every shipped reward promises the step. A new one without an example in `examples.py` fails."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import saerl_lightning.reward
from saerl_lightning.registration import register_classes
from saerl_lightning.reward.reward import Reward, grade, require_distinct
from tests import shipped_classes
from tests.reward.examples import EXAMPLES, Example, rollouts

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "empty": "",
    "blank": " \n\t ",
    "long": "1 + " * 25_000,
    "one long word": "7" * 100_000,
    "null bytes": "\0 2 \0",
    "surrogates": "\ud800 2 \udfff",
    "half a box": "\\boxed{" * 2_000,
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


def shipped() -> dict[str, type[Reward]]:
    register_classes()
    return shipped_classes.shipped(Reward, saerl_lightning.reward)


@pytest.fixture(scope="module")
def made():
    """Makes the reward of a name with its example, once for all tests of the module."""
    kept: dict[str, tuple[Reward, Example]] = {}

    def get(name: str) -> tuple[Reward, Example]:
        if name not in kept:
            example = EXAMPLES[name]()
            kept[name] = shipped()[name](**example.arguments), example
        return kept[name]

    yield get
    for reward, _ in kept.values():
        reward.close()


def groups(example: Example) -> list[list[str]]:
    return [[good, bad, good] for good, bad in zip(example.good, example.bad, strict=True)]


def test_every_shipped_reward_has_an_example():
    assert shipped().keys() == EXAMPLES.keys()


@EVERY
def test_grades_are_finite_of_the_right_shape_and_higher_for_the_better(name, made):
    reward, example = made(name)
    reward.require(example.prompts)
    scores = reward(example.prompts, rollouts(*groups(example)))
    assert scores.shape == (3, 3) and scores.is_floating_point() and scores.device.type == "cpu"
    assert scores.isfinite().all(), reward.last_failure
    if example.ordered:
        assert (scores[:, 0] > scores[:, 1]).all() and scores[:, 0].equal(scores[:, 2])


@EVERY
def test_grades_follow_their_prompts_in_any_order_in_parts_and_again(name, made):
    """As with graders beside generation, which see the prompts part by part."""
    reward, example = made(name)
    asked, texts, order = example.prompts, groups(example), [2, 0, 1]
    whole = reward(asked, rollouts(*texts))
    shuffled = reward([asked[i] for i in order], rollouts(*[texts[i] for i in order]))
    assert shuffled.equal(whole[order])
    assert torch.cat([reward(asked[i : i + 1], rollouts(texts[i])) for i in range(3)]).equal(whole)
    assert reward(asked, rollouts(*texts)).equal(whole)


@EVERY
def test_a_group_of_one_is_graded_as_in_a_larger_one(name, made):
    reward, example = made(name)
    single = reward(example.prompts, rollouts(*([good] for good in example.good)))
    assert single.shape == (3, 1) and single.equal(reward(example.prompts, rollouts(*groups(example)))[:, :1])


@EVERY
def test_prompts_and_completions_stay_as_they_are(name, made):
    reward, example = made(name)
    asked, given = copy.deepcopy(example.prompts), rollouts(*groups(example))
    kept = copy.deepcopy(given)
    reward(asked, given)
    assert repr([(p, dict(p.columns)) for p in asked]) == repr([(p, dict(p.columns)) for p in example.prompts])
    for field, value in vars(kept).items():
        now = getattr(given, field)
        assert now.equal(value) if isinstance(value, torch.Tensor) else now == value, field


@EVERY
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strange_completion_costs_at_most_its_own_grade(name, kind, made):
    reward, example = made(name)
    texts = [[good, HOSTILE[kind]] for good in example.good]
    began = time.monotonic()
    scores = reward(example.prompts, rollouts(*texts))
    assert time.monotonic() - began < 60, "it hung"
    assert scores.shape == (3, 2) and not scores.isinf().any()
    assert scores[:, 0].equal(reward(example.prompts, rollouts(*([good] for good in example.good)))[:, 0])
    assert isinstance(reward.vote(HOSTILE[kind]), str)


@EVERY
def test_a_closed_reward_grades_again(name, made):
    """Fit closes it, and the test after it asks it again."""
    reward, example = made(name)
    before = reward(example.prompts, rollouts(*groups(example)))
    reward.close()
    reward.close()
    assert reward(example.prompts, rollouts(*groups(example))).equal(before)


@EVERY
def test_one_class_can_be_used_twice(name):
    arguments, kind = EXAMPLES[name]().arguments, shipped()[name]
    first, second = kind(**arguments, weight=0.25), kind(**arguments, weight=-2.0, name="another")
    require_distinct([first, second])
    assert (first.weight, second.weight, second.name) == (0.25, -2.0, "another")
    assert first.name and first.name != "another" and first.last_failure == ""
    first.close()
    second.close()


@EVERY
def test_its_seconds_are_counted_once(name, made):
    reward, example = made(name)
    reward.drain_seconds()
    began = time.perf_counter()
    scores = grade([reward], example.prompts, rollouts(*groups(example)))
    assert scores.keys() == {reward.name}
    assert 0 < reward.drain_seconds() <= time.perf_counter() - began
    assert reward.drain_seconds() == 0


SCRIPT = """
import json, multiprocessing
multiprocessing.set_start_method("spawn")
from tests.reward.examples import EXAMPLES, rollouts
from tests.reward.test_conformance import groups, shipped

print("once")
scores = {}
for name, kind in shipped().items():
    example = EXAMPLES[name]()
    reward = kind(**example.arguments)
    scores[name] = reward(example.prompts, rollouts(*groups(example))).tolist()
    reward.close()
print(json.dumps(scores))
"""


def test_a_script_without_a_guard_gets_the_same_grades(tmp_path, made):
    """One that stayed would keep the pipe open, and this test waiting; one that ran the script again would print again."""
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "train.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    once, printed = done.stdout.splitlines()
    assert once == "once"
    for name, scores in json.loads(printed).items():
        reward, example = made(name)
        assert reward(example.prompts, rollouts(*groups(example))).tolist() == scores
