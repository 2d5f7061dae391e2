"""Shapes and types are checked at run time in the pure modules; this must run before any of them is imported."""

import sys
from functools import cache
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

jaxtyping.install_import_hook(
    [
        f"saerl_lightning.{name}"
        for name in (
            "records",
            "plan",
            "data.ordering",
            "signals.model",
            "signals.reading",
            "signals.pooling",
            "signals.prefix_tree",
            "objective.advantage",
            "objective.losses",
            "policy.logprobs",
            "policy.prefix",
            "policy.prefix_attention",
            "policy.scoring",
            "evaluation.estimators",
        )
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int will do where a float is asked for
)

# Printed commands begin as this program was called, and pytest is called in several ways.
sys.argv[0] = "__main__.py"

# A shared machine stalls now and then; and no database, which several processes would write to.
SLOWLY = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("suite", deadline=None, database=None, suppress_health_check=SLOWLY)
hypothesis.settings.load_profile("suite")


PAGES = "tests/commands/test_pages.py"  # its tests take minutes and share nothing


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With `--dist loadfile`: one process a file, whose tests share fixtures, and one for all files that start vLLM.

    xdist's own groups (`--dist loadgroup`) are not read under pytest 9.2.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class EnginesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if file == PAGES:
                return nodeid
            return "vllm" if starts_vllm(config.rootpath / file) else file

    return EnginesTogether(config, log)


@cache
def starts_vllm(path: Path) -> bool:
    """Whether a test file has tests of the real engine."""
    return "mark.vllm" in path.read_text()
