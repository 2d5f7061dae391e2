"""Without a network a hub name is refused in seconds, by every loader, in one line that says what to do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from saerl_lightning import hub
from saerl_lightning.errors import InputError, tool
from saerl_lightning.policy.load import Policy
from saerl_lightning.signals.model import ReadModel

ROOT = Path(__file__).parents[1]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers

EVERY_LOADER = """
import time, warnings
warnings.simplefilter("ignore")
from saerl_lightning.errors import InputError, tool
from saerl_lightning.policy.load import Policy
from saerl_lightning.prompts.hub import HubPrompts
from saerl_lightning.signals.model import ReadModel
import datasets, transformers
from transformers import AutoTokenizer, AutoModelForCausalLM
began = time.monotonic()
for load in (
    HubPrompts("nobody/prompts").load,
    Policy("nobody/policy").load_tokenizer,
    Policy("nobody/policy").load_model,
    ReadModel("nobody/reader").config,
    ReadModel("nobody/reader").load_tokenizer,
):
    try:
        load()
    except InputError as error:
        print(error)
print(f"{time.monotonic() - began:.1f}")
"""


@pytest.mark.slow
def test_every_loader_refuses_within_seconds(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": NOBODY, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", EVERY_LOADER]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
    *lines, seconds = ended.stdout.splitlines()
    assert len(lines) == 5, ended.stdout
    for line, name in zip(lines, ["prompts", "policy", "policy", "reader", "reader"], strict=True):
        assert f"{tool('hf')} download nobody/{name}" in line and "the hub can't be reached" in line
    assert float(seconds) < 30


@pytest.fixture
def online(monkeypatch):
    """As if the hub had never been asked; what was decided is forgotten afterwards."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once_and_not_by_its_libraries(online):
    began = time.monotonic()
    for load in (Policy("nobody/policy").load_tokenizer, ReadModel("nobody/reader").config):
        with pytest.raises(InputError, match=r"hub can't be reached .* run '\S*hf download nobody/"):
            load()
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    assert time.monotonic() - began < 20
    assert hub.reachable.cache_info().misses == 1


def test_local_paths_are_not_looked_up(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("here", str(tmp_path / "gone"), "a/b/c", "./gone"):
        hub.look_up(name)
        assert hub.advice(name) == ""
    assert hub.reachable.cache_info().misses == 0 and not constants.HF_HUB_OFFLINE
