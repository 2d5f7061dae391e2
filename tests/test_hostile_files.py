"""Every reader of a file by every kind of broken file: one line that says what is wrong, or a value, and nothing else."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from saerl_lightning.causal.subject import MeasurementCache
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_mapping
from saerl_lightning.lock import Holder
from saerl_lightning.mistakes import printed
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.policy.weights import require_undamaged, require_usable
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.hub import HubPrompts
from saerl_lightning.prompts.labels import LabelFile, read_labels
from saerl_lightning.run_folder import RunFolder
from saerl_lightning.signals.sae_source import SAESource
from saerl_lightning.study.costs import logged_steps
from saerl_lightning.study.folder import read_about
from saerl_lightning.study.report.gather import read_sections
from saerl_lightning.study.report.publication import read_publication
from saerl_lightning.study.results import read_stages
from saerl_lightning.study.run_record import read_record
from saerl_lightning.study.spec import StudySpec

PUBLISHED = Path("docs/results/demo").resolve()

CONTENTS = {
    "empty": b"",
    "blank": b" \n\n \n",
    "no text": bytes(range(256)) * 40,
    "UTF-16": '{"uid": "a", "prompt": "1", "answer": "2"}\n'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "a deep mapping": b'{"a":' * 100_000,
    "a number of many digits": b'{"uid": "a", "prompt": "1", "answer": ' + b"9" * 100_000 + b"}\n",
    "half a character": b'{"uid": "\\ud800", "prompt": "\\ud800", "name": "\\ud800", "title": "\\ud800"}\n',
    "a list": b"[1, 2, 3]\n",
    "null": b"null\n",
    "a number": b"7\n",
    "other keys": b'{"nothing": {"of": ["ours"]}}\n',
    "a torn object": b'{"uid": "a", "prompt": "1 + ',
    "zeros": b"\0" * 5000,
    "a line without an end": b"a," * 300_000,
    "aliases": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(12)),
}


def _record(name, known):
    """A folder in which one file of a published study is the broken one."""

    def read(file):
        folder = file.parent / "published"
        shutil.copytree(PUBLISHED, folder)
        shutil.copy(file, folder / name)
        return known(folder)

    return read


def _named(name, reader):
    """A reader of a folder, in which the file has this name."""

    def read(file):
        place = file.parent / "folder" / name
        place.parent.mkdir(parents=True)
        os.link(file, place)
        return reader(file.parent / "folder")

    return read


class Read:
    path, name, place = "tiny", "tiny", "cpu"

    def config(self):
        return 1, 2, 8


def _sae(folder):
    shutil.copy(folder / "cfg.json", folder / "sae_weights.safetensors")
    return SAESource(str(folder)).load(Read())


def _saved(folder):
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    return FilePrompts(str(folder)).load()


def _measured(folder):
    name = next(folder.iterdir())
    (measured := MeasurementCache(folder)).rates({"a": 1}, lambda: np.zeros(1))
    written = next(each for each in folder.iterdir() if each != name)
    written.write_bytes(name.read_bytes())
    return measured.rates({"a": 1}, lambda: np.zeros(1))


REFUSING = {  # readers for which none of the contents is right
    "prompts": (".jsonl", lambda file: FilePrompts(str(file)).load()),
    "prompts in parquet": (".parquet", lambda file: FilePrompts(str(file)).load()),
    "prompts in Arrow": (".arrow", lambda file: FilePrompts(str(file)).load()),
    "prompts in JSON": (".json", lambda file: FilePrompts(str(file)).load()),
    "prompts in CSV": (".csv", lambda file: FilePrompts(str(file)).load()),
    "prompts in TSV": (".tsv", lambda file: FilePrompts(str(file)).load()),
    "prompts that were saved": (".arrow", _named("data-00000-of-00001.arrow", _saved)),
    "state of saved prompts": (".json", _named("state.json", lambda folder: FilePrompts(str(folder)).load())),
    "card of a folder of prompts": (
        ".yaml",
        _named(".huggingface.yaml", lambda folder: HubPrompts(str(folder)).load()),
    ),
    "splits of saved prompts": (".json", _named("dataset_dict.json", lambda folder: FilePrompts(str(folder)).load())),
    "labels": (".jsonl", lambda file: read_labels(str(file))),
    "ledger": (".parquet", Ledger.read),
    "checkpoint": (".ckpt", lambda file: require_usable(file, to_go_on=True)),
    "study": (".yaml", StudySpec.read),
    "record of a study": (".json", _named("study.json", read_about)),
    "published study": (".yaml", _record("study.yaml", read_publication)),
    "published record": (".json", _record("study.json", read_publication)),
    "published runs": (".csv", _record("runs.csv", read_publication)),
    "published curves": (".csv", _record("curves.csv", read_publication)),
    "published scores": (".csv", _record("scores.csv", read_publication)),
    "published questions": (".csv", _record("questions.csv", read_publication)),
    "SAE": (".json", _named("cfg.json", _sae)),
    "measurement": (".json", _named("a.json", _measured)),
}
TAKING = {  # readers that make something of what is there, or of nothing
    "configuration of a run": (".yaml", lambda file: read_mapping(file, "the run's configuration")),
    "labels so far": (".jsonl", lambda file: LabelFile(str(file), {"samples": 4}).open()),
    "stages": (".json", _named("shared/stages.json", read_stages)),
    "record of a run": (".json", _named("run.json", lambda folder: read_record(folder, "grpo", 0, SPEC()))),
    "metrics": (".csv", _named("csv/version_0/metrics.csv", logged_steps)),
    "section of a report": (".json", _named("notes/a.json", read_sections)),
    "lock": (".json", Holder.read),
    "run folder": (".yaml", _named("config.yaml", lambda folder: RunFolder(folder)._state())),
    "digests": (".ckpt", _named("last.ckpt.sha256", lambda folder: _checked(folder / "last.ckpt"))),
}


def SPEC():
    return StudySpec.read(PUBLISHED / "study.yaml")


def _checked(checkpoint):
    checkpoint.write_bytes(b"weights")
    require_undamaged(checkpoint)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", REFUSING)
def test_a_broken_file_is_refused_in_one_line(tmp_path, reader, content):
    ending, read = REFUSING[reader]
    file = tmp_path / f"broken{ending}"
    file.write_bytes(CONTENTS[content])
    with pytest.raises(InputError) as refused:
        read(file)
    assert "\n" not in str(refused.value) and len(printed(str(refused.value))) < 600, str(refused.value)[:300]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", TAKING)
def test_a_broken_file_ends_in_a_line_or_in_what_can_be_read_of_it(tmp_path, reader, content):
    ending, read = TAKING[reader]
    file = tmp_path / f"broken{ending}"
    file.write_bytes(CONTENTS[content])
    try:
        read(file)
    except InputError as refused:
        assert "\n" not in str(refused) and len(printed(str(refused))) < 600, str(refused)[:300]
