"""The Hugging Face hub where it can't be reached: what is cached is used at once, and what is not is refused in seconds.

Its libraries ask again and again, for more than a minute, before they say that there is no network.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

PATIENCE_S = 5.0
NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # that the hub knows; a path with more parts is none


def look_up(name: str) -> None:
    """Call it before a name is looked up on the hub: where the hub doesn't answer, its libraries stop asking it.

    The hub is not asked about a local file or folder, nor about a path that can't be a name.

    Args:
        name: on the hub, or a local path.
    """
    from huggingface_hub import constants

    if Path(name).exists() or not NAME.fullmatch(name) or constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # processes started later need not find out
    if (datasets := sys.modules.get("datasets")) is not None:  # it took a copy when it was imported
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


@cache
def reachable(endpoint: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether the hub answers, whatever it says; asked once.

    Args:
        endpoint: of the hub.
        patience_s: seconds until no answer is one too.
    """
    answers: list[Any] = []
    asking = Thread(
        target=_ask, args=(endpoint, patience_s, answers), daemon=True
    )  # looking up a name may hang for longer
    asking.start()
    asking.join(patience_s)
    return bool(answers)


def _ask(endpoint: str, patience_s: float, answers: list[Any]) -> None:
    from huggingface_hub.utils import get_session

    try:
        answers.append(get_session().head(endpoint, timeout=patience_s))
    except Exception:  # by whichever HTTP library the hub's client uses
        return


def advice(name: str, kind: str = "model") -> str:
    """What to do about a name that was not found, where the hub can't be reached; empty otherwise.

    Args:
        name: that was looked up.
        kind: model or dataset.
    """
    from huggingface_hub import constants

    if Path(name).exists() or not NAME.fullmatch(name) or not constants.HF_HUB_OFFLINE:
        return ""
    option = "" if kind == "model" else f" --repo-type {kind}"
    return (
        f"; the hub can't be reached (no network, or HF_HUB_OFFLINE is set) and '{name}' is not in its cache: run "
        f"'.venv/bin/hf download {name}{option}' where there is a network, or write a local folder"
    )
