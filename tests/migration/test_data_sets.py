"""Data sets in the files of other trainers: a name on the hub, a file, a saved folder, a folder of parquet files."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from saerl_lightning.migration.conversion import convert
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.verl import VERL
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.hub import HubPrompts
from saerl_lightning.prompts.mixture import open_prompts

ROWS = Dataset.from_dict({"prompt": ["What is 1 + 1?", "What is 2 + 1?"], "answer": ["2", "3"]})
CLASSES = {"FilePrompts": FilePrompts, "HubPrompts": HubPrompts}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a saved Dataset, a saved DatasetDict, a file, and a folder of parquet files."""
    monkeypatch.chdir(tmp_path)
    ROWS.save_to_disk("data/one")
    DatasetDict({"train": ROWS, "test": ROWS.select([1])}).save_to_disk("data/splits")
    ROWS.to_json("data/rows.jsonl")
    Path("data/parquet").mkdir()
    ROWS.to_parquet("data/parquet/train-00000-of-00001.parquet")
    return tmp_path


def prompts(setting: object) -> list[str]:
    """Texts of the prompts that a converted setting stands for, as a run reads them."""
    if isinstance(setting, dict) and "class_path" in setting:
        return [each.text for each in CLASSES[setting["class_path"]](**setting["init_args"]).load()]
    return [each.text for each in open_prompts(setting).load()]


def converted(trainer, **values):
    draft = convert(trainer, values)
    return {name: value for name, (value, _) in draft.settings.items()}, draft.lost


@pytest.mark.parametrize("place", ["data/one", "./data/one", "data/splits", "data/rows.jsonl", "data/parquet"])
def test_a_local_data_set_of_trl_is_read_by_its_path(desk, place):
    for name in (place, str(desk / place)):
        settings, _ = converted(TRL, dataset_name=name)
        assert prompts(settings["data.train"]) == ROWS["prompt"]


def test_the_splits_of_a_saved_data_set_are_those_of_the_file(desk):
    settings, lost = converted(TRL, dataset_name="data/splits", eval_strategy="epoch")
    assert prompts(settings["data.val"]["test"]) == ["What is 2 + 1?"] and "dataset_test_split" not in lost
    settings, _ = converted(TRL, dataset_name="data/splits", dataset_train_split="test")
    assert prompts(settings["data.train"]) == ["What is 2 + 1?"]


def test_a_split_that_a_data_set_without_splits_can_not_have_is_listed(desk):
    settings, lost = converted(TRL, dataset_name="data/one", eval_strategy="epoch")
    assert "data.val" not in settings
    assert "data/one has no splits" in lost["dataset_test_split"] and "--data.val" in lost["dataset_test_split"]


def test_a_name_on_the_hub_stays_one(desk):
    settings, _ = converted(TRL, dataset_name="data/other", dataset_config="main")
    expected = {"path": "data/other", "split": "train", "name": "main"}
    assert settings["data.train"] == {"class_path": "HubPrompts", "init_args": expected}


def test_a_path_in_the_home_folder_is_found(desk, monkeypatch):
    monkeypatch.setenv("HOME", str(desk))
    for name in ("~/data/one", "$HOME/data/one", "${HOME}/data/one"):
        assert prompts(converted(TRL, dataset_name=name)[0]["data.train"]) == ROWS["prompt"]
    name = {"data.train_files": ["~/data/one", "~/data/rows.jsonl"], "data.val_files": "~/data/parquet"}
    settings, _ = converted(VERL, **name)
    assert [len(prompts(each)) for each in settings["data.train"].values()] == [2, 2]
    assert prompts(settings["data.val"]["parquet"]) == ROWS["prompt"]
    assert [each.text for each in open_prompts("~/data/rows.jsonl").load()] == ROWS["prompt"]


@pytest.mark.parametrize("place", ["data/one", "data/rows.jsonl", "data/parquet"])
def test_a_number_of_samples_limits_whatever_verl_reads(desk, place):
    settings, _ = converted(VERL, **{"data.train_files": place, "data.train_max_samples": 1})
    assert prompts(settings["data.train"]) == ["What is 1 + 1?"]


def test_the_hub_class_sends_a_saved_folder_to_the_class_of_files(desk):
    with pytest.raises(
        ValueError, match=r"the data set 'data/one' was written by save_to_disk; write data.train: data/one"
    ):
        HubPrompts("data/one").load()
