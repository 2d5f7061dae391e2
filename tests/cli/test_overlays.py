"""An overlay adds a callback with `callbacks+`; one that replaces the list says which ones it takes away."""

import pytest

from saerl_lightning.parser import dropped_callbacks

REPLACES = """\
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.LearningRateMonitor
    - class_path: PlanTable
"""
ADDS = "trainer:\n  callbacks+:\n    - class_path: LearningRateMonitor\n"


@pytest.fixture
def overlay(workplace):
    def write(text: str) -> str:
        path = workplace.folder / "overlay.yaml"
        path.write_text(text)
        return str(path)

    return write


def names(config) -> list[str]:
    return [each.class_path.rpartition(".")[2] for each in config.trainer.callbacks]


def test_a_list_of_its_own_drops_the_others_and_says_so_once(workplace, overlay, parsed, capsys):
    config = parsed(workplace.command("fit", "-c", file := overlay(REPLACES)))
    assert names(config) == ["LearningRateMonitor", "PlanTable"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert said[0].startswith(f"warning: {file}: trainer.callbacks replaces the list of ")
    assert "so ValidateAtStart, PhaseProgressBar, CompletionTable are off; write callbacks+ to add to it" in said[0]


def test_a_callback_that_is_added_brings_no_message(workplace, overlay, parsed, capsys):
    config = parsed(workplace.command("fit", "-c", overlay(ADDS)))
    assert names(config) == [
        "ValidateAtStart",
        "PhaseProgressBar",
        "CompletionTable",
        "PlanTable",
        "LearningRateMonitor",
    ]
    assert "warning" not in capsys.readouterr().err


def test_what_was_added_before_counts_and_a_longer_list_loses_nothing(tmp_path):
    texts = [
        ADDS,
        REPLACES,
        "trainer: {callbacks: PlanTable}\n",
        "data: {batch_size: 2}\n",
        "trainer: {callbacks: null}",
    ]
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    assert dropped_callbacks(files[:2]) == []
    first, second = dropped_callbacks(files)
    assert "replaces the list of" in first and "so LearningRateMonitor is off" in first
    assert second.startswith(str(files[4])) and "so PlanTable is off" in second
