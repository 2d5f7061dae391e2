"""A fit that was interrupted or raised, in a process that lives on as a notebook's kernel does: it leaves nothing behind."""

import re
from functools import partial

import pytest
import torch

from saerl_lightning.policy.load import Policy
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Prompt
from saerl_lightning.reward.math_reward import MathReward
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.callbacks import PhaseProgressBar
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.sft import SFTModule
from tests.reward.test_workers import grader_pids
from tests.training.conftest import data, fit, largest_difference, module, tiny, trainer, weights

__all__ = ["tiny"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Fault(Exception): ...


WAYS = {"raised": (Fault, Fault), "interrupted": (KeyboardInterrupt, SystemExit)}  # Lightning exits upon Ctrl-C


@pytest.fixture(params=WAYS)
def give_up(request, monkeypatch):
    """Lets a method of GRPOModule end the fit when it is called for the n-th time; returns how the fit ends."""
    error, ends = WAYS[request.param]

    def at(place: str, call: int = 1, kind: type = GRPOModule):
        own, calls = getattr(kind, place), []

        def fails(self, *given, **named):
            calls.append(1)
            if len(calls) == call:
                raise error
            return own(self, *given, **named)

        monkeypatch.setattr(kind, place, fails)
        return pytest.raises(ends)

    return at


class Doubles(PromptSource):
    """Questions that are not trained on."""

    def load(self) -> list[Prompt]:
        return [Prompt.asking(f"double/{a}", f"2*{a}=", str(2 * a)) for a in range(8)]


def asked():
    return data(val={"doubles": Doubles()})


class CountingEngine(HFEngine):
    """Tells whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def test_graders_and_engine_end_with_the_fit(tiny, tmp_path, give_up):
    engine = CountingEngine()
    ours = module(tiny, rewards=[MathReward(workers=1)], engine=engine)
    with give_up("observe"):
        fit(ours, data(), trainer(tmp_path, 2))
    assert not grader_pids()
    assert engine.closed
    fit(ours, data(), trainer(tmp_path, 1))  # and start again


def test_graders_end_with_an_evaluation_too(tiny, tmp_path, give_up):
    ours = module(tiny, rewards=[MathReward(workers=1)])
    with give_up("_report_evaluation"):
        trainer(tmp_path, 1).validate(ours, asked(), verbose=False)
    assert not grader_pids()


def test_a_step_that_was_given_up_does_not_count_in_the_next_fit(tiny, tmp_path, give_up):
    """Its gradients were computed, and its update was not made."""
    fresh, again = module(tiny), module(tiny)
    with give_up("descend"):
        fit(again, data(), trainer(tmp_path, 1))
    assert all(parameter.grad is None for parameter in again.parameters())
    assert not again.phases.drain()
    fit(again, data(), trainer(tmp_path, 1))
    fit(fresh, data(), trainer(tmp_path, 1))
    assert largest_difference(weights(fresh), weights(again)) == 0


def drawn(capfd) -> str:
    """What bars have drawn since the last call."""
    return "".join(capfd.readouterr())


def with_bar(folder, steps: int):
    return trainer(folder, steps, (PhaseProgressBar(),), enable_progress_bar=True)


def test_a_bar_ends_with_a_fit_that_was_given_up(tiny, tmp_path, capfd, give_up):
    ours, bar = module(tiny), with_bar(tmp_path, 3)
    with give_up("observe", call=2):
        fit(ours, data(), bar)
    assert re.search("Epoch 0 (generate|score|forward)", drawn(capfd))
    fit(ours, data(), trainer(tmp_path, 1))
    assert "Epoch" not in drawn(capfd)


def test_a_bar_ends_with_a_fit_that_ended(tiny, tmp_path, capfd):
    ours = module(tiny)
    fit(ours, data(), with_bar(tmp_path, 1))
    assert "Epoch 0" in drawn(capfd)
    trainer(tmp_path, 1).validate(ours, asked(), verbose=False)
    assert "Epoch" not in drawn(capfd)


def test_a_bar_of_a_later_fit_stays(tiny, tmp_path):
    """The phases belong to the bar that came last."""
    ours, first = module(tiny), PhaseProgressBar()
    shown: list[str] = []
    ours.phases.listener = shown.append
    other = trainer(tmp_path, 1)
    other.strategy.connect(ours)
    first.on_exception(other, ours, Fault())
    assert ours.phases.listener == shown.append


def test_an_sft_module_that_is_given_up_closes_engine_and_graders(tiny, tmp_path, give_up):
    engine = CountingEngine()
    ours = SFTModule(Policy(tiny), engine, [MathReward(workers=1)], optimizer=partial(torch.optim.SGD, lr=0.1))
    with give_up("rows", kind=SFTModule):
        fit(ours, data(), trainer(tmp_path, 2))
    assert engine.closed
