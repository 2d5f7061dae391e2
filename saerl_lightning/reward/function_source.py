"""Where a user's reward function stands, and which form it has, read in a process that may hang or crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from saerl_lightning.errors import InputError
from saerl_lightning.reward.jobs.user_function import FORMS, Signature, Source, signature
from saerl_lightning.reward.workers import WorkerPool

IMPORT_S = 120.0  # a file of rewards that is not imported by then hangs


def source_of(function: str | Callable[..., Any]) -> Source:
    """Where graders find a function; whether a file is there is looked at here, without a process."""
    if not isinstance(function, str):
        return cloudpickle.dumps(function)
    place, found, name = function.rpartition(":" if ":" in function else ".")
    if not (place and found and all(part.isidentifier() for part in name.split("."))):
        raise InputError(
            f"FunctionReward.function is '{function}'; write my_rewards.py:accuracy, or my_package.rewards.accuracy"
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise InputError(
            f"FunctionReward.function is '{function}', and there is no file '{place}'; write the path from here"
        )
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else function


def described(source: Source, shown: str) -> Signature:
    """A function's form, read in a process that may hang or crash as it imports the function.

    Raises:
        InputError: if it can't be imported or has no form that is known.
    """
    pool = WorkerPool(1, IMPORT_S)
    try:
        [result] = pool.run(signature, [(source,)])
    finally:
        pool.close()
    if result.failure:
        raise InputError(f"{shown} can't be imported: its process {result.failure}; {FORMS}")
    if isinstance(result.value, str):
        raise InputError(f"{shown} is no reward: {result.value}")
    return result.value
