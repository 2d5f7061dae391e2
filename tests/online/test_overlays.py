"""Every overlay of configs/online in a real small run, resumed: the same prompts, weights and state, to the last bit."""

from pathlib import Path

import jsonargparse
import lightning
import numpy as np
import pytest
import torch
import yaml

import saerl_lightning.online.beliefs
import saerl_lightning.online.rules
from saerl_lightning.data.callback import Online
from saerl_lightning.data.clustering import TopicClusters
from saerl_lightning.online.beliefs.belief import Belief
from saerl_lightning.online.rules.rule import Rule
from saerl_lightning.records import Prompt, Sampling
from saerl_lightning.registration import register_classes
from saerl_lightning.signals.random_signals import RandomSignals
from tests.shipped_classes import shipped
from tests.training.conftest import Sums, data, fit, module, tiny, trainer, weights

__all__ = ["tiny"]

FOLDER = Path(__file__).parents[2] / "configs/online"
OVERLAYS = {path.stem: yaml.safe_load(path.read_text())["data"]["init_args"] for path in sorted(FOLDER.glob("*.yaml"))}
STEPS = 8  # the epoch has three batches, if nothing is excluded
SAVED = (2, 3)  # within the first epoch, and at its end


class Labelled(Sums):
    """Fourteen sums with every label that an overlay names, and two topics."""

    def load(self) -> list[Prompt]:
        return [
            Prompt.asking(
                each.uid,
                each.text,
                each.answer,
                topic="ab"[i % 2],
                labels={
                    "difficulty": 7.0 * i,
                    "weak_difficulty": 50.0 + 3 * i,
                    "strong_difficulty": 20.0 + 5 * (i % 3),
                },
            )
            for i, each in enumerate(super().load())
        ]


class Served(lightning.Callback):
    """Notes the pool rows of each step, and saves after some."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rows.append(list(batch.rows))

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step in SAVED:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def operation(name: str) -> Online:
    register_classes()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--online", type=Online)
    return parser.instantiate(parser.parse_object({"online": OVERLAYS[name]["online"]})).online


def run(tiny: str, folder: Path, online: Online, ckpt_path: Path | None = None):
    """Steps to the end, from the start or from a checkpoint; short groups, so that many do not vary."""
    served = Served(folder)
    made = trainer(folder, STEPS, (served,))
    planned = data(train=Labelled(14), online=online, clustering=TopicClusters(), signals=RandomSignals(6))
    sampling = Sampling(group_size=4, max_tokens=3, seed=3)
    policy = fit(module(tiny, sampling=sampling), planned, made, ckpt_path=ckpt_path and str(ckpt_path))
    return served.rows, weights(policy), arrays(online.state_dict())


def arrays(state):
    """The state with arrays for tensors, since NumPy compares nested values of any kind."""
    if isinstance(state, dict):
        return {name: arrays(value) for name, value in state.items()}
    return state.numpy() if isinstance(state, torch.Tensor) else state


def named(given) -> set[str]:
    """Every class that a config names."""
    if not isinstance(given, dict):
        return set()
    return {given.get("class_path", "")}.union(*(named(each) for each in given.values()))


def test_every_shipped_operation_belief_and_rule_has_an_overlay():
    online, rooms = saerl_lightning.online, (saerl_lightning.online.beliefs, saerl_lightning.online.rules)
    kinds = {**shipped(Online, online), **shipped(Belief, rooms[0]), **shipped(Rule, rooms[1])}
    assert {name for name in kinds if not name.startswith("_")} <= named(OVERLAYS)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_resumed_run_serves_and_learns_the_same(tiny, tmp_path, name):
    served, end, state = run(tiny, tmp_path, operation(name))
    assert len(served) == STEPS
    for done in SAVED:
        rest, again, restored = run(tiny, tmp_path / "again", operation(name), tmp_path / f"{done}.ckpt")
        assert rest == served[done:]
        torch.testing.assert_close(again, end, rtol=0, atol=0)
        np.testing.assert_equal(restored, state)  # NaN equals NaN here


def test_other_online_operations_serve_other_prompts(tiny, tmp_path):
    """A few that should differ do, so that equal runs above are no accident."""
    names = ("mopps", "dps", "adarft", "procurl", "greso")
    runs = {name: run(tiny, tmp_path / name, operation(name))[0] for name in names}
    assert len({str(rows) for rows in runs.values()}) == len(names)
