"""Configurations that version 0.1 recorded name classes by paths that are gone; they mean what they meant."""

import importlib.util
import re
from pathlib import Path

import pytest

from saerl_lightning.files import read_mapping
from saerl_lightning.moved import MOVED, at_new_paths

RECORDED = Path(__file__).parent / "recorded"  # printed by version 0.1
CONFIGS = {
    "grpo": ["grpo", "saerl", *(f"ablate/{name}" for name in (
        "topic_clusters", "matched_filter", "shuffled_order", "random_signals", "random_reward"
    ))],
    "sae": ["sae/topk"],
}  # fmt: skip


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
    assert then.as_dict() == today.as_dict()


def test_an_old_path_on_the_command_line_and_in_a_recorded_run(parsed, tmp_path):
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
