"""What a study's runs were made with is kept beside their digests, one entry for every software that ran some."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import yaml

from saerl_lightning.study import folder
from saerl_lightning.study.processes import SubprocessExecutor
from saerl_lightning.study.run_record import RunRecord
from saerl_lightning.study.software import software
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools import study


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_are_those_of_the_imported_packages(tmp_path):
    found = software(tmp_path)
    assert (found["numpy"], found["torch"]) == (numpy.__version__, str(torch.__version__))
    assert found["python"] == sys.version.split()[0]
    assert "commit" not in found


def test_a_checkout_gives_its_commit_and_says_whether_files_differ(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "code")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert software(tmp_path)["commit"] == head
    (tmp_path / "code.py").write_text("2\n")
    assert software(tmp_path)["commit"] == f"{head}, changed"


def test_another_software_is_added_and_the_same_is_not(tmp_path, monkeypatch):
    source = tmp_path / "small.yaml"
    text = {"name": "small", "base": [], "arms": {"grpo": {}}, "seeds": [0], "budget": {"steps": 1}, "baseline": "grpo"}
    source.write_text(yaml.safe_dump(text))
    for numpys in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr(folder, "software", lambda numpys=numpys: {"numpy": numpys})
        folder.claim(StudySpec.read(source), source, tmp_path / "out", {"grpo": "digest"})
    assert json.loads((tmp_path / "out/study.json").read_text())["software"] == [{"numpy": "1.0"}, {"numpy": "2.0"}]


def test_a_checkout_that_moves_on_while_the_study_runs_is_noted(tmp_path, monkeypatch):
    """Each run imports the code that is there when it starts."""
    source = tmp_path / "small.yaml"
    text = {"name": "small", "base": [], "arms": {"grpo": {}}, "seeds": [0], "budget": {"steps": 1}, "baseline": "grpo"}
    source.write_text(yaml.safe_dump(text))
    out, spec = tmp_path / "out", StudySpec.read(source)
    commits = iter(["a", "a", "b"])
    monkeypatch.setattr(folder, "software", lambda: {"commit": next(commits)})
    folder.claim(spec, source, out, {"grpo": "digest"})

    class Moving:
        """Ends two runs."""

        def __init__(self, *given: object) -> None: ...

        def run(self, left, ended) -> None:
            for seed in range(2):
                ended(RunRecord("grpo", seed, "finished"))

    monkeypatch.setattr(study, "StudyExecution", Moving)
    study._run_left(spec, out, [], 1, SubprocessExecutor())
    about = json.loads((out / "study.json").read_text())
    assert about["software"] == [{"commit": "a"}, {"commit": "b"}] and about["arms"] == {"grpo": "digest"}
