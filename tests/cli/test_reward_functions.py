"""Functions as rewards on the command line: their short forms in flags, and what they lack is said before all else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from saerl_lightning.parser import with_functions, with_rewards_flags

FUNCTION = "def colour(completions, hue):\n    return [0.0 for _ in completions]\n"
MADE = {"class_path": "FunctionReward", "init_args": {"function": "x.py:f"}}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("x.py:f", MADE),
        ("a/b.c/x.py:f", {"class_path": "FunctionReward", "init_args": {"function": "a/b.c/x.py:f"}}),
        ("x.f", {"class_path": "FunctionReward", "init_args": {"function": "x.f"}}),
        ("a.b:f", {"class_path": "FunctionReward", "init_args": {"function": "a.b:f"}}),
        ("[x.py:f, MathReward]", [MADE, "MathReward"]),
        ("{function: x.py:f, weight: 0.5}", {**MADE, "init_args": {"function": "x.py:f", "weight": 0.5}}),
    ],
)
def test_short_forms_in_a_flag(value, written):
    for flag in ("--model.rewards", "--model.rewards+", "--model.init_args.rewards+"):
        assert with_rewards_flags(["fit", flag, value, "-c", "x.f"])[1:] == [flag, json.dumps(written), "-c", "x.f"]
        assert with_rewards_flags([f"{flag}={value}"]) == [f"{flag}={json.dumps(written)}"]
    assert with_functions({"rewards+": yaml.safe_load(value)}) == {"rewards+": written}


@pytest.mark.parametrize("value", ["MathReward", "my.module.OwnReward", "{class_path: MathReward}", "[", "null", "f"])
def test_what_is_no_function_stays_as_it_is(value):
    assert with_rewards_flags(["--model.rewards+", value]) == ["--model.rewards+", value]
    assert with_rewards_flags(["--data.train", "x.py:f", "--model.rewards"]) == [
        "--data.train",
        "x.py:f",
        "--model.rewards",
    ]
    assert with_functions({"targets": ["layers.q_proj"], "file": "x.f"}) == {
        "targets": ["layers.q_proj"],
        "file": "x.f",
    }


def test_a_function_is_added_by_a_flag(workplace, door, capsys):
    (workplace.folder / "mine.py").write_text(FUNCTION.replace("hue", "answer"))
    place = f"{workplace.folder}/mine.py:colour"
    assert door(workplace.command("fit", "--model.rewards+", place, "--trainer.max_steps=1")).code == 0
    [first, *_] = map(json.loads, (workplace.run_dir / "completions.jsonl").read_text().splitlines())
    assert first["reward"] in (0.0, 1.0)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "label", "show"])
def test_a_missing_column_is_told_before_weights_are_loaded(verb, workplace, door, monkeypatch):
    from saerl_lightning.policy.load import Policy

    monkeypatch.setattr(Policy, "load_model", lambda self: pytest.fail("weights are loaded"))
    (workplace.folder / "mine.py").write_text(FUNCTION)
    rewards = f'--model.rewards=["{workplace.folder}/mine.py:colour"]'
    more = {
        "validate": [workplace.with_dev()],
        "test": [workplace.with_dev().replace("data.val", "data.test")],
        "label": [f"--out={workplace.folder}/labels.jsonl"],
    }
    ended = door(workplace.command(verb, rewards, *more.get(verb, [])))
    assert (
        ended.code == 2 and "mine.py:colour needs 'hue', and no prompt has it; the columns are answer, " in ended.error
    )
    assert not (workplace.folder / "labels.jsonl").exists()


def test_a_module_in_the_present_folder_is_found_as_by_python_m(workplace):
    """`trl grpo` finds it too. The program stands in another folder, as an installed one does."""
    (workplace.folder / "my_own_rewards.py").write_text(FUNCTION.replace("hue", "answer"))
    program = Path(__file__).parents[2] / "main.py"
    command = workplace.command("show", '--model.rewards=["my_own_rewards.colour"]')
    ended = subprocess.run(
        [sys.executable, str(program), *command], cwd=workplace.folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 and "colour" in ended.stdout, ended.stderr
