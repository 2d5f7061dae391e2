"""Further arguments that a user gives to the calls of a reward function: what they may be."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.reward.jobs.user_function import LOGGING, Signature

log = logging.getLogger(__name__)

GRADED = {"prompts", "completions", "completion_ids", "solution_str"}  # what a call has by itself


def require_arguments(arguments: Mapping[str, Any], signature: Signature, shown: str) -> None:
    """Refuses arguments that a function does not take, that a call has anyway, or that are not JSON's.

    Args:
        arguments: Arguments by name.
        signature: What is known of the function.
        shown: Name of the function for messages.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        said = f"FunctionReward.arguments has '{str(name)[:120]}'"
        if name in {*GRADED, *LOGGING}:
            raise InputError(f"{said}, which every call of {shown} has by itself; take it out")
        if not isinstance(name, str) or not (name in signature.takes or signature.takes_all):
            takes = ", ".join(each for each in signature.takes if each not in GRADED)
            near = did_you_mean(str(name), signature.takes)
            raise InputError(f"{said}, which {shown} does not take; it takes {takes or 'none'}{near}")
        if name not in signature.takes and (near := did_you_mean(name, signature.takes)):
            log.warning(f"warning: {said}, which {shown} takes by its ** alone{near}")
        if not _is_json(value):
            raise InputError(
                f"{said} = {value!r:.80}, which is no value of JSON; write a number, a text, true, false, null, or a "
                "list or mapping of these"
            )


def _is_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    if isinstance(value, list):
        return all(_is_json(each) for each in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
