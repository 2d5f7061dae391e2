"""What stands for prompts on the command line and in YAML: files, mixtures and columns, the same by flag and by file."""

import json
import logging

import pytest
import yaml

from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError
from saerl_lightning.parser import Refused, RunParser
from saerl_lightning.prompts.mixture import Part, open_prompts
from saerl_lightning.prompts.source import PromptSource
from tests.data.served_prompts import TOKENIZER

ROWS = [{"riddle": f"What is {i} + 1?", "meta": {"gold": i + 1}} for i in range(6)]
COLUMNS = {"prompt": "riddle", "answer": "meta.gold"}


@pytest.fixture
def pool(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return str(file)


def parsed(*args, config=None):
    parser = RunParser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_lightning_class_args(PromptDataModule, "data", subclass_mode=True)
    given = parser.parse_args([*(["-c", str(config)] if config else ["--data", "PromptDataModule"]), *args])
    return parser.instantiate(given).data


def by_yaml(tmp_path, **settings):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"data": {"class_path": "PromptDataModule", "init_args": settings}}))
    return parsed(config=config)


def test_columns_are_the_same_as_flags_and_as_yaml(tmp_path, pool):
    each = parsed("--data.train", pool, "--data.columns.prompt", "riddle", "--data.columns.answer", "meta.gold")
    whole = parsed("--data.train", pool, "--data.columns", "{prompt: riddle, answer: meta.gold}")
    file = by_yaml(tmp_path, train=pool, columns=COLUMNS)
    assert each.columns == whole.columns == file.columns == COLUMNS
    file.tokenizer = TOKENIZER
    assert [prompt.answer for prompt in file.pool.prompts] == ["1", "2", "3", "4", "5", "6"]


def test_a_mixture_is_the_same_as_flag_and_as_yaml(tmp_path, pool):
    flag = parsed("--data.train", f"{{a: {pool}, b: {{source: {pool}, weight: 2}}}}")
    file = by_yaml(tmp_path, train={"a": pool, "b": {"source": pool, "weight": 2}})
    assert flag.train == file.train == {"a": pool, "b": Part(pool, weight=2)}


def test_a_file_is_never_configuration_and_no_class_is_imported_for_it(tmp_path, monkeypatch):
    """Names that could be read as a class's path or as configuration stay names of files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pool.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "train.json").write_text('{"class_path": "FilePrompts", "init_args": {"path": "x"}}')
    (tmp_path / "saved").mkdir()
    for name in ("pool.jsonl", "pool.csv", "train.json", "saved", "owner/name"):
        assert parsed("--data.train", name).train == name
    data = parsed("--data.train", "train.json")
    data.tokenizer = TOKENIZER
    with pytest.raises(InputError, match=r"no known form .*; its first row: class_path='FilePrompts'"):
        data.setup("fit")


def test_a_class_is_still_a_source(pool):
    data = parsed("--data.train", "FilePrompts", "--data.train.path", pool, "--data.train.limit", "2")
    assert isinstance(data.train, PromptSource) and data.train.limit == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "{class_path: HubPromts, init_args: {path: x}}",
            "'HubPromts' fits no class for this place; did you mean 'HubPrompts'",
        ),
        ("{class_path: FilePrompts, init_args: {pth: x}}", "'pth' is not accepted; did you mean 'path'?"),
        ("{sums: {source: x, wieght: 1}}", "'wieght' is not accepted; did you mean 'weight'?"),
        ("{sums: {source: x, weight: x}}", "data.train.weight is 'x'; write a number or null"),
    ],
)
def test_a_mistake_in_a_class_or_in_a_mixture_is_named_as_such(given, said):
    for before in ([], ["--data.train", "HubPrompts", "--data.train.path", "a/b"]):
        with pytest.raises(Refused) as refused:
            parsed(*before, "--data.train", given)
        assert said in str(refused.value)


def test_a_misspelt_class_without_arguments_is_no_mixture():
    with pytest.raises(InputError, match="'FilePromts' fits no class of prompts; did you mean 'FilePrompts'"):
        open_prompts({"class_path": "FilePromts"})


def test_sets_take_the_columns_unless_they_have_their_own(tmp_path, pool):
    (tmp_path / "known.jsonl").write_text('{"prompt": "7 + 1?", "answer": "8"}')
    known = ValidationSet(str(tmp_path / "known.jsonl"), columns={})
    data = PromptDataModule(
        pool, {"same": ValidationSet(pool, keep_trained=True), "known": known}, batch_size=2, columns=COLUMNS
    )
    data.tokenizer = TOKENIZER
    data.setup()
    assert [set_.pool.prompts[0].answer for set_ in data._val_pools] == ["1", "8"]


def test_a_line_says_as_what_each_set_was_read(tmp_path, caplog):
    file = tmp_path / "gsm.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) for i in range(8)))
    data = PromptDataModule(str(file), {"dev": ValidationSet(str(file), keep_trained=True)})
    data.tokenizer = TOKENIZER
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        data.setup("fit")
    said = [line for line in caplog.messages if "read as" in line]
    expected = f"{file}: 8 rows read as GSM8K: prompt from question, answer from answer (after '####')"
    assert sorted(said) == [f"data.train: {expected}", f"dev: {expected}"]
