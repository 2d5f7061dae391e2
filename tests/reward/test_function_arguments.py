"""`FunctionReward.arguments`: a function of the user's own with further arguments, in both forms, by Python and by YAML."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.function import FunctionReward

FUNCTIONS = """
def trls(completions, answer, bonus, unit="m", **columns):
    assert "bonus" not in columns
    return [bonus[text] * (text == right) + 10 * (unit == "km") for text, right in zip(completions, answer)]


def narrow(completions, bonus=0.0):
    return [bonus for _ in completions]


def verls(data_source, solution_str, ground_truth, bonus, extra_info=None, **more):
    return {"score": bonus + (solution_str == ground_truth) + 10 * (data_source == "other") + 100 * more.get("far", 0)}


async def waits(solution_str, bonus):
    return bonus
"""
PROMPTS = [Prompt.asking("p", "?", "3", source="sums", labels={"unit": 1.0})]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


CASES = {
    "trl's form, a column's place taken": ("trls", {"bonus": {"3": 2.0, "4": 5.0}, "unit": "km"}, [12.0, 10.0]),
    "trl's form without columns": ("narrow", {"bonus": 0.5}, [0.5, 0.5]),
    "verl's form": ("verls", {"bonus": 0.25}, [1.25, 0.25]),
    "verl's form, a source's place taken, and a further one": (
        "verls",
        {"bonus": 0.25, "data_source": "other", "far": 1},
        [111.25, 110.25],
    ),
    "verl's form, async": ("waits", {"bonus": 0.75}, [0.75, 0.75]),
}


@pytest.mark.parametrize(("name", "arguments", "wanted"), CASES.values(), ids=CASES)
def test_arguments_are_given_with_each_call(desk, name, arguments, wanted):
    reward = FunctionReward(f"mine.py:{name}", arguments=arguments)
    completions = Rollouts.pack([[5]], [[7], [8]], [[-1.0], [-1.0]], [False, False], ["3", "4"], 2, 0)
    try:
        reward.require(PROMPTS)
        assert reward(PROMPTS, completions).tolist() == [wanted]
    finally:
        reward.close()


REFUSED = {
    "a misspelt name": (
        "narrow",
        {"bonos": 1},
        "has 'bonos', which mine.py:narrow does not take; it takes bonus; did you",
    ),
    "what a call has by itself": (
        "narrow",
        {"completions": []},
        "has 'completions', which every call of mine.py:narrow has",
    ),
    "a completion": ("verls", {"bonus": 1, "solution_str": "x"}, "has 'solution_str', which every call"),
    "no number": ("narrow", {"bonus": float("nan")}, "has 'bonus' = nan, which is no value of JSON; write a number"),
    "an object": ("narrow", {"bonus": [{"a": {1, 2}}]}, "which is no value of JSON"),
    "a key that is no text": ("narrow", {"bonus": {1: 2}}, "which is no value of JSON"),
    "a name that is no text": ("verls", {"bonus": 1, 2: 3}, "has '2', which mine.py:verls does not take"),
}


@pytest.mark.parametrize(("name", "arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_what_a_function_does_not_take_is_refused_before_a_step(desk, name, arguments, said):
    with pytest.raises(InputError, match=re.escape(said)):
        FunctionReward(f"mine.py:{name}", arguments=arguments)


def test_a_name_that_a_function_takes_by_its_keywords_alone_is_told_if_another_is_near(desk, caplog):
    Path("kwargs.py").write_text(
        "def loose(completions, bonus=0.0, **more):\n    return [bonus for _ in completions]\n"
    )
    FunctionReward("kwargs.py:loose", arguments={"bonos": 1.0}).close()
    assert "has 'bonos', which kwargs.py:loose takes by its ** alone; did you mean 'bonus'?" in caplog.text
    caplog.clear()
    FunctionReward("kwargs.py:loose", arguments={"bonus": 1.0, "temperature": 2}).close()
    assert not caplog.text


def test_a_parameter_without_a_column_is_refused_unless_it_is_an_argument(desk):
    reward = FunctionReward("mine.py:waits")
    with pytest.raises(InputError, match=r"needs 'bonus'.*or a value in arguments"):
        reward.require(PROMPTS)


def test_the_short_form_of_a_configuration_has_arguments(desk):
    Path("mine.yaml").write_text(
        "model: {init_args: {rewards: [{function: 'mine.py:verls', arguments: {bonus: 0.5, more: {a: [1, null]}}}]}}\n"
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.run(["fit", "-c", "grpo.yaml", "-c", "mine.yaml", "--print_config"])
    [reward] = yaml.safe_load(printed.getvalue())["model"]["init_args"]["rewards"]
    assert reward["init_args"]["arguments"] == {"bonus": 0.5, "more": {"a": [1, None]}}
