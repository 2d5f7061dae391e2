"""The estimate of an SAE's hours, worked by hand; and the command for a GPU, tried on a CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sae_hours
from sae_hours import SIZES, Setting

ROOT = Path(__file__).parents[2]


def test_hours_are_operations_over_rates():
    sizes, setting = SIZES["SmolLM2-135M"], Setting(tokens=3.6e9, context=0, gpus=2, read_share=1, train_share=1)
    # 16 of 30 layers, each with 576 x (2 x 576 + 2 x 192 + 3 x 1536) weights, two operations a weight.
    assert sae_hours.read_flops(sizes, setting) == 16 * 2 * 576 * (2 * 576 + 2 * 192 + 3 * 1536) == 113_246_208
    assert sae_hours.train_flops(sizes, setting) == 12 * 576 * 4608
    read, train = sae_hours.hours(sizes, replace(setting, read_tflops=113.246208, train_tflops=12 * 576 * 4608 / 1e6))
    assert (read, train) == pytest.approx((0.5, 0.5))
    assert sae_hours.hours(sizes, replace(setting, gpus=1, epochs=3))[0] == 6 * sae_hours.hours(sizes, setting)[0]


def test_memory_is_text_buffer_model_and_sae():
    held = sae_hours.memory(SIZES["Qwen2.5-1.5B"], Setting())
    assert held["text"] == 0.4 and held["buffer"] == pytest.approx(2**20 * 1536 * 2 / 1e9)
    assert held["model"] == pytest.approx(3.087, abs=0.01) and held["SAE"] == 16 * 2 * 1536 * 12_288 / 1e9
    page = "\n".join(sae_hours.page("Qwen2.5-1.5B", Setting()))
    assert set(sae_hours.SOURCES) == set(vars(Setting())) and page.count("\n- ") == len(vars(Setting()))


@pytest.mark.slow
def test_the_command_for_a_gpu_measures_on_a_cpu():
    small = ["--prompts", "2", "--group", "2", "--prompt-tokens", "64", "--completion-tokens", "4", "--steps", "1"]
    command = [sys.executable, "benchmarks/on_gpu.py", "--device", "cpu", "--model", "tiny", *small]
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--parts", "sampling", "extraction"], cwd=ROOT, env=place, capture_output=True, text=True, check=True
    )
    found = {each["part"]: each for each in map(json.loads, filter(None, done.stdout.splitlines()))}
    assert found["sampling"]["HFEngine: sampled tokens/s"] > 0 and found["sampling"]["device"] == "cpu"
    assert found["extraction"]["read tokens/s"] > 0 and found["extraction"]["prompts"] == 128
