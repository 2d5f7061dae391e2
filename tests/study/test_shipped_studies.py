"""Every shipped study resolves, and its stages read nothing that it has not made."""

import re
from pathlib import Path

import pytest

from saerl_lightning import cli
from saerl_lightning.study.folder import resolve
from saerl_lightning.study.spec import StudySpec
from tests.study.small_study import CONFIGS, ROOT

SHIPPED = sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))


@pytest.mark.parametrize(
    "name", [name if name == "demo" else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
def test_every_shipped_study_resolves(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = StudySpec.read(CONFIGS / f"study/{name}.yaml")
    resolved = resolve(spec, Path("runs/x"))
    assert spec.name == name and set(resolved) == set(spec.arms)
    assert all(arm.description for arm in spec.arms.values())
    assert "runs/demo" not in str(resolved)  # what `make demo` leaves may be there, and is not the study's


COMMANDS = sorted(
    {
        line
        for name in SHIPPED
        for stage in StudySpec.read(CONFIGS / f"study/{name}.yaml").shared
        for line in stage.run
        if line.startswith("main.py") and not line.startswith("main.py export")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_shipped_stage_reads_nothing_that_the_study_has_not_made(line, monkeypatch, capsys):
    """`plan` and `label` take the settings of `fit`, and two or three of their own."""
    monkeypatch.chdir(ROOT)
    verb, *words = line.replace("{seed}", "3").split()[1:]
    own = ("--out=", "--export=") if verb == "plan" else ("--out=", "--prompts=", "--seed=") if verb == "label" else ()
    cli.run(["fit", *(word for word in words if not word.startswith(own)), "--print_config"])
    read = capsys.readouterr().out
    for place in ("run_dir", "save_to"):
        read = re.sub(rf"^ *{place}: .*$", "", read, flags=re.M)
    assert "runs/demo" not in read
