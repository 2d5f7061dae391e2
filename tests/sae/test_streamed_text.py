"""Text that is read document by document: the documents of the files, none more than asked for, and never all at once."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.sae.streamed_text import HubText, TextFiles


def texts(source) -> list[str]:
    return [prompt.text for prompt in source.load()]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a{i}", "n": i}) + "\n" for i in range(3)) + "\n")
    pq.write_table(pa.table({"text": ["b0", "b1"], "other": ["x", "y"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("c0\n\nc1 and more\n")
    return tmp_path


def test_documents_come_in_the_order_of_the_files(folder):
    assert texts(TextFiles(str(folder / "*"))) == ["a0", "a1", "a2", "b0", "b1", "c0", "c1 and more"]
    assert texts(TextFiles(str(folder / "*"), limit=4)) == ["a0", "a1", "a2", "b0"]
    assert texts(TextFiles(str(folder / "b.parquet"), column="other")) == ["x", "y"]
    uids = [prompt.uid for prompt in TextFiles(str(folder / "*")).load()]
    assert len(set(uids)) == 7 and uids[0] == "a.jsonl:1"


def test_only_what_is_asked_for_is_read(folder):
    """The file ends in a broken line, which a reader of the whole file would meet."""
    with (folder / "a.jsonl").open("a") as file:
        file.write("{broken")
    documents = TextFiles(str(folder / "a.jsonl")).stream()
    assert [next(documents).text for _ in range(3)] == ["a0", "a1", "a2"]
    with pytest.raises(InputError, match=r"a\.jsonl:\d: broken JSON"):
        next(documents)


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        ("none.jsonl", None, "text", "there is no text file '.*none.jsonl'; write a file, or a pattern"),
        ("a.bin", "x", "text", "ends in '.bin'; text is read from .jsonl, .txt, .parquet"),
        ("x.jsonl", '{"text": 3}', "text", r"x.jsonl:1: column 'text' is 3, no text; there are text"),
        ("x.jsonl", '{"text": "a"}', "body", r"column 'body' is None, no text; there are text"),
        ("x.jsonl", "[1]", "text", r"write one object a line"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, column, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        TextFiles(str(tmp_path / name), column).load()


def test_a_data_set_is_streamed_and_refused_in_one_line(tmp_path, folder):
    (tmp_path / "set").mkdir()
    (folder / "a.jsonl").rename(tmp_path / "set" / "train.jsonl")
    assert texts(HubText(str(tmp_path / "set"), limit=2)) == ["a0", "a1"]
    with pytest.raises(InputError, match="split 'nope'"):
        HubText(str(tmp_path / "set"), split="nope").load()
