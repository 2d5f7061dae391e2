"""The names at the top of the package: all there, imported when used, and every part that YAML can name among them."""

import inspect
import subprocess
import sys

import pytest

import saerl_lightning
from saerl_lightning.data.callback import DataCallback
from saerl_lightning.data.probes import Probe
from saerl_lightning.errors import InputError
from saerl_lightning.objective.objective import Objective
from saerl_lightning.prompts.lists import ListPrompts
from saerl_lightning.prompts.source import ProbeReference, PromptSource
from saerl_lightning.registration import register_classes
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.signals.source import SignalSource

SEAMS = (DataCallback, Objective, Probe, ProbeReference, PromptSource, Reward, RolloutEngine, SignalSource)


def shipped(seam: type) -> set[str]:
    """Concrete classes of a seam that the package brings."""
    found: set[str] = set()
    for each in seam.__subclasses__():
        ours = each.__module__.startswith("saerl_lightning.") and not each.__name__.startswith(("_", "LazyInstance"))
        found |= ({each.__name__} if ours and not inspect.isabstract(each) else set()) | shipped(each)
    return found


def test_every_part_that_a_config_can_name_is_public():
    register_classes()
    for seam in SEAMS:
        assert shipped(seam) <= set(saerl_lightning.__all__), seam.__name__


def test_every_public_name_is_there():
    for name in saerl_lightning.__all__:
        assert getattr(saerl_lightning, name).__name__ == name


def test_importing_the_package_imports_nothing_heavy():
    heavy = "[name for name in ('torch', 'lightning', 'numpy', 'transformers') if name in sys.modules]"
    code = f"import sys, saerl_lightning; print({heavy}, saerl_lightning.InputError.__module__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[] saerl_lightning.errors\n"


def test_lists_become_prompts_and_unequal_ones_are_refused():
    first, second = ListPrompts(["What is 1 + 1?", "And 2 + 2?"], ["2", "4"], {"difficulty": [0, 1]}, "sums").load()
    assert (first.uid, second.uid, second.answer, second.labels) == ("sums/0", "sums/1", "4", {"difficulty": 1.0})
    assert first.messages == ({"role": "user", "content": "What is 1 + 1?"},)
    for given, says in (
        (dict(questions=["a"], answers=["1", "2"]), "answers has 2 entries for 1 questions"),
        (dict(questions=["a"], labels={"level": []}), r"labels\['level'\] has 0 entries for 1 questions"),
        (dict(questions=[]), "give a list of at least one text"),
        (dict(questions="one text"), "give a list"),
    ):
        with pytest.raises(InputError, match=says):
            ListPrompts(**given)
