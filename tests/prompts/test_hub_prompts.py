"""Data sets become prompts; a local folder stands for the hub."""

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.hub import HubPrompts

COLUMNS = {"prompt": "question", "answer": "final_answer"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set in the form of zwhe99/DeepMath-103K."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"{i}+1?", "final_answer": str(i + 1), "difficulty": i / 2, "topic": "Sums", "r1_solution_1": "x"}
        for i in range(3)
    ]
    (tmp_path / "deepmath").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "deepmath" / "train-00000.parquet")
    return tmp_path / "deepmath"


def test_a_local_data_set_folder_is_read_with_its_columns(folder):
    prompts = HubPrompts(str(folder), columns=COLUMNS).load()
    assert [(p.uid, p.text, p.answer, p.topic) for p in prompts] == [
        (f"deepmath/{i}", f"{i}+1?", str(i + 1), "Sums") for i in range(3)
    ]
    assert [p.labels for p in prompts] == [{"difficulty": 0.0}, {"difficulty": 0.5}, {"difficulty": 1.0}]
    assert HubPrompts(str(folder), columns=COLUMNS, limit=2).load() == prompts[:2]
    assert HubPrompts(str(folder), columns=COLUMNS, limit=9).load() == prompts


def test_a_data_set_is_recognised_and_its_other_columns_are_kept(folder):
    reading = HubPrompts(str(folder)).read()
    assert reading.prompts == HubPrompts(str(folder), columns=COLUMNS).load()
    assert "3 rows read as DeepMath: prompt from question, answer from final_answer" in reading.said[0]
    assert [dict(prompt.columns)["r1_solution_1"] for prompt in reading.prompts] == ["x"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": COLUMNS, "split": "dev"}, "split 'dev'"),
        ({"columns": {"answer": "gold"}}, "'gold', which .* lacks; .* question, final_answer, .* r1_solution_1"),
        ({"columns": {"gold": "answer"}}, "names the field 'gold'"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_bad_arguments_are_refused(folder, arguments, message):
    with pytest.raises(InputError, match=message):
        HubPrompts(str(folder), **arguments).load()


@pytest.mark.parametrize(
    "path", ["../secret/*.jsonl", "{tmp}/secret/s.jsonl", "a/../../secret/s.jsonl", "hf://datasets/a/b"]
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_the_card_of_a_folder_names_no_file_elsewhere(folder, tmp_path, path, card):
    """`datasets` would read it: the first three gave the secret rows."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jsonl").write_text('{"prompt": "secret", "answer": "s"}')
    path = path.format(tmp=tmp_path)
    content = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ['{path}']\n"
    (folder / card).write_text(f"---\n{content}---\n# Card\n" if card == "README.md" else content)
    with pytest.raises(InputError, match="which is not in the folder"):
        HubPrompts(str(folder)).load()
    (folder / card).write_text((folder / card).read_text().replace(path, "train-*.parquet"))
    assert len(HubPrompts(str(folder)).load()) == 3


def test_an_unknown_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"unknown data set .*gone"):
        HubPrompts(str(tmp_path / "gone")).load()


def test_no_network_is_said(monkeypatch):
    """What `datasets` raises where it must not ask, or after 23 s of retries, was seen for real: a ConnectionError."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hub can't be reached .* run '\S*hf download a/b --repo-type dataset'"):
        HubPrompts("a/b").load()
