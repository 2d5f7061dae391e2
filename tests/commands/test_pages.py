"""The commands of each page that need nothing are run as printed, in the page's order, in a folder like a fresh checkout.

Files that the reader brings (prompts) are small ones made here; overlays and modules are those that the page tells to write.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parent))
from printed import ROOT

PAGES = yaml.safe_load((Path(__file__).parent / "needs.yaml").read_text())["none"]
TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CHECKOUT = (
    ".venv",
    "Makefile",
    "main.py",
    "configs",
    "saerl_lightning",
    "benchmarks",
    "requirements",
    "pyproject.toml",
)
MODEL = "models/smollm2-135m"


def problems(count: int, start: int = 0) -> str:
    """Sums whose answers are short, with a topic and a difficulty."""
    rows = [
        {
            "id": f"q{i}",
            "prompt": f"What is {i} + {i % 7}? Say the number only.",
            "answer": str(i + i % 7),
            "topic": ["small", "large"][i > 9],
            "difficulty": i % 5,
        }
        for i in range(start, start + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def checkout(tmp_path, request):
    for name in CHECKOUT:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / MODEL).parent.mkdir()
    (tmp_path / MODEL).symlink_to((ROOT / MODEL).resolve())
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/train.jsonl").write_text(problems(8))
    (tmp_path / "prompts/val.jsonl").write_text(problems(2, 50))
    (tmp_path / "problems.jsonl").write_text(problems(130 if "sae" in request.node.name else 40))
    without = [{k: v for k, v in json.loads(row).items() if k != "difficulty"} for row in problems(24).splitlines()]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without))
    yield tmp_path
    for made in (tmp_path / "runs", *(tmp_path / "models").glob("*")):  # checkpoints of a gigabyte
        made.unlink() if made.is_symlink() else shutil.rmtree(made, ignore_errors=True)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.pages
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not (ROOT / MODEL).is_dir(), reason=f"needs {MODEL}: `make smollm2`")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_printed(page, checkout):
    for title, text in TITLED.findall((ROOT / page).read_text()):
        (checkout / title).write_text(text)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_API_KEY", None)
    for command in PAGES[page]:
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        print(f"{time.monotonic() - began:6.1f} s, exit code {done.returncode}: {command}")  # `pytest -rP` shows it
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
