"""The tables of docs/gpus.md are those that the script makes, and their sizes are the models' published ones."""

import os
import subprocess
import sys
from pathlib import Path

import gpus
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gpus.md"


def test_the_pages_tables_are_those_that_the_command_prints():
    assert gpus.page() in PAGE.read_text()


@pytest.mark.parametrize(
    ("model", "millions"),  # as the model cards say
    [("Qwen2.5-0.5B", 494), ("Qwen2.5-1.5B", 1544), ("Qwen2.5-3B", 3086), ("Qwen2.5-7B", 7616), ("Llama-3.1-8B", 8030)],
)
def test_sizes_give_the_published_number_of_parameters(model, millions):
    assert gpus.MODELS[model].parameters / 1e6 == pytest.approx(millions, abs=1)


def test_the_first_setting_that_fits_is_taken_and_a_card_that_is_too_small_has_none():
    sizes = gpus.MODELS["Qwen2.5-0.5B"]
    setting, held = gpus.first_that_fits(sizes, 48, 1) or pytest.fail("0.5B fits on 48 GB")
    assert setting == gpus.SETTINGS[0] and held.total < 0.9 * 48e9
    assert gpus.first_that_fits(gpus.MODELS["Llama-3.1-8B"], 24, 1) is None


@pytest.mark.slow
def test_the_estimate_is_near_a_measured_peak():
    """Loosely: the allocator keeps more than the tensors that are counted."""
    command = [sys.executable, "benchmarks/step_memory.py", "tiny", "4", "128", "8", "256"]
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, check=True).stdout
    assert 0.6 < float(said.rpartition("= ")[2]) < 1.2
