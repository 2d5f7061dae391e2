"""The built wheel in an environment of its own: the command, the configs, and a first run, far from any checkout.

The environment has this one's dependencies, whose folder a `.pth` file names, and the package from the wheel alone.
"""

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("saerl_lightning", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")

pytestmark = [
    pytest.mark.slow,
    # Not by `find_spec("pip")`, upon which setuptools leaves the standard library's distutils in place for this process,
    # and then refuses to be imported, as by vLLM.
    pytest.mark.skipif(not any(importlib.metadata.distributions(name="pip")), reason="pip builds the wheel"),
]


def succeed(*command: object, cwd: Path) -> str:
    """What a command prints on its standard output; it sees nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The wheel, and what its build said."""
    source = tmp_path_factory.mktemp("source")  # a build leaves folders beside what it reads
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-v", "-w", "dist"]
    said = succeed("sh", "-c", shlex.join([sys.executable, "-m", "pip", "wheel", *flags, "."]) + " 2>&1", cwd=source)
    return next((source / "dist").glob("*.whl")), said


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of the environment's programs."""
    home = tmp_path_factory.mktemp("environment")
    succeed(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    packages = next((home / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    succeed(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home
    )
    place = succeed(python, "-c", "import saerl_lightning; print(saerl_lightning.__file__)", cwd=home)
    assert Path(place.strip()).is_relative_to(packages)
    return home / "bin"


def test_the_build_names_every_folder_and_warns_of_none(built):
    said = [line for line in built[1].splitlines() if "absent from" in line or "Warning" in line]
    assert "adding 'saerl_lightning/configs/grpo.yaml'" in built[1]
    assert not said


def test_the_wheel_holds_every_file_of_the_package_and_the_configs(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = [each for each in (ROOT / "saerl_lightning").rglob("*") if each.is_file() and each.suffix != ".pyc"]
    expected = {each.relative_to(ROOT).as_posix() for each in package}
    expected |= {f"saerl_lightning/{each.relative_to(ROOT).as_posix()}" for each in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in held if ".dist-info/" not in name} == expected


def test_the_first_minute_of_a_new_user(installed, tmp_path):
    assert succeed(installed / "saerl", "configs", cwd=tmp_path).startswith("grpo.yaml")
    succeed(installed / "saerl", "init", "try", cwd=tmp_path)
    succeed(installed / "saerl", "fit", "-c", "try/run.yaml", "--run_dir=run", cwd=tmp_path)
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    rows = (tmp_path / "run/csv/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 61  # a header, and the steps that the starter says


def test_shipped_configs_are_taken_by_name(installed, tmp_path):
    flags = ["-c", "grpo.yaml", "-c", "configs/saerl.yaml", "-c", "model/smollm2_135m.yaml", "--print_config"]
    said = succeed(installed / "saerl", "fit", *flags, cwd=tmp_path)
    assert "EasyToHard" in said and "models/smollm2-135m" in said


def test_a_study_of_shipped_configs_is_read(installed, tmp_path):
    study = ["study", "run", "study/demo.yaml", "--print_commands", "true"]
    said = succeed(installed / "python", "-m", "saerl_lightning", *study, cwd=tmp_path)
    assert len([line for line in said.splitlines() if " fit " in line]) == 9
