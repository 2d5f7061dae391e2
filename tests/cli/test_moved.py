"""Configurations that version 0.1 recorded name classes by paths that are gone; they mean what they meant."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from saerl_lightning.files import read_mapping
from saerl_lightning.moved import MOVED, at_new_paths

RECORDED = Path(__file__).parent / "recorded"  # printed by version 0.1
CONFIGS = {
    "grpo": ["grpo", "saerl", *(f"ablate/{name}" for name in (
        "topic_clusters", "matched_filter", "shuffled_order", "random_signals", "random_reward"
    ))],
    "sae": ["sae/topk"],
}  # fmt: skip


def in_full(config):
    """A configuration in which each class has the path of the module that defines it: public names are shorter."""
    if isinstance(config, list):
        return [in_full(each) for each in config]
    if not isinstance(config, dict):
        return config
    made = {key: in_full(value) for key, value in config.items()}
    if made.get("path") == "zwhe99/DeepMath-103K":
        made.pop("columns", None)  # named in 0.1; recognised today
    if isinstance(path := made.get("class_path"), str):
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        made["class_path"] = f"{kind.__module__}.{kind.__qualname__}"
    return made


@pytest.mark.parametrize("old", MOVED)
def test_what_moved_is_where_the_table_says_and_no_longer_where_it_was(old):
    assert importlib.util.find_spec(f"saerl_lightning.{MOVED[old]}")
    assert not importlib.util.find_spec(f"saerl_lightning.{old}")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_version_0_1_is_parsed_into_what_its_files_say_today(parsed, name):
    recorded = RECORDED / f"{name}-0.1.yaml"
    assert re.search("|".join(re.escape(f"saerl_lightning.{old}.") for old in MOVED), recorded.read_text())
    files = [part for each in CONFIGS[name] for part in ("-c", f"configs/{each}.yaml")]
    then, today = parsed(["fit", "-c", str(recorded)]), parsed(["fit", *files, "--run_dir=runs/old"])
    for config in (then, today):
        del config["config"]
    assert in_full(then.as_dict()) == in_full(today.as_dict())


def test_an_old_path_on_the_command_line_or_in_a_recorded_run_is_read_as_todays(parsed, tmp_path):
    given = "--data.curriculum=saerl_lightning.data.curriculum_controls.LengthOrder"
    config = parsed(["fit", "-c", "configs/grpo.yaml", given])
    assert config["data"]["init_args"]["curriculum"]["class_path"] == "saerl_lightning.data.curriculum.LengthOrder"
    recorded = tmp_path / "config.yaml"
    recorded.write_text("data: {class_path: saerl_lightning.data.filtering_controls.RandomFilter}\n")
    assert read_mapping(recorded, "it") == {"data": {"class_path": "saerl_lightning.data.filtering.RandomFilter"}}


@pytest.mark.parametrize(
    "text", ["saerl_lightning.data.pool", "mine.data.pool.X", "saerl_lightning.data.pools.X", "a b"]
)
def test_what_names_no_class_that_moved_stays(text):
    assert at_new_paths(text) == text


SIX = ["lean_layers", "tiled_head", "skip_zero_advantage", "reuse_forward", "sort_by_length", "overlap_grading"]


@pytest.mark.parametrize(
    ("switches", "shortcuts"),
    [
        ({}, "all"),
        ({"shared_prefix": True, "lean_layers": True}, "all"),
        ({"shared_prefix": False}, SIX),
        (dict.fromkeys(["shared_prefix", *SIX[1:]], False), ["lean_layers"]),
        (dict.fromkeys(["shared_prefix", *SIX], False), "none"),
    ],
)
def test_switches_of_shortcuts_in_a_recorded_run_are_the_names_that_were_on(parsed, tmp_path, switches, shortcuts):
    recorded = tmp_path / "config.yaml"
    model = {"init_args": {"shortcuts": switches}} if switches else {}
    recorded.write_text(yaml.safe_dump({"model": model}))
    config = parsed(["fit", "-c", "configs/grpo.yaml", "-c", str(recorded)])
    assert config["model"]["init_args"]["shortcuts"] == shortcuts
    if switches:
        assert read_mapping(recorded, "it")["model"]["init_args"]["shortcuts"] == shortcuts


@pytest.mark.parametrize("flag", ["--model.shortcuts.shared_prefix=false", "--model.init_args.shortcuts.shared_prefix"])
def test_an_old_switch_on_the_command_line_is_told_what_to_write(workplace, door, flag):
    ended = door(workplace.command("fit", flag, *([] if "=" in flag else ["false"])))
    assert ended.code == 2 and not workplace.run_dir.exists()
    assert f"list the shortcuts to keep, as in --model.shortcuts '[{', '.join(SIX)}]'" in ended.error
    assert door(workplace.command("fit", f"--model.shortcuts=[{', '.join(SIX)}]", "--trainer.max_steps=1")).code == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "some",
            "model.shortcuts names 'some'; write all, none, or a list of shared_prefix, lean_layers, tiled_head, ",
        ),
        ("[lean_layer]", "names 'lean_layer'; .*overlap_grading; did you mean 'lean_layers'"),
        ("lean_layers", r"names 'lean_layers'; .*did you mean \[lean_layers\]"),
        ("[all]", "names 'all'; "),
        ("{lean_layers: 3}", "model.shortcuts"),
        ("[1]", "model.shortcuts"),
        ("null", "model.shortcuts"),
        ("true", "names 'true'"),
    ],
)
def test_a_name_that_no_shortcut_has_is_refused_in_one_line_with_the_names(workplace, door, given, says):
    ended = door(workplace.command("fit", f"--model.shortcuts={given}"))
    assert ended.code == 2 and re.search(says, ended.error), ended.error
    assert ended.error.strip().count("\n") == 0 and not workplace.run_dir.exists()
