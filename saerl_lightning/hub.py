"""Looks up names on the Hugging Face hub; without a network, uses the cache at once or refuses within seconds.

The hub's own libraries retry for more than a minute before they report that there is no network.
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
# Names that the hub accepts. A path with more parts can only be local.
NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def look_up(name: str) -> None:
    """Switches the hub's libraries to offline mode if the hub does not answer. Call it before each look-up.

    Local files, local folders, and paths that can't be hub names need no network and are not checked.

    Args:
        name: Name on the hub, or a local path.
    """
    from huggingface_hub import constants

    if Path(name).exists() or not NAME.fullmatch(name) or constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True
    # The environment variable tells processes that are started later. `datasets` copied the setting when it was
    # imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


@cache
def reachable(endpoint: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether the hub answers in time, with any status. The result is cached.

    Args:
        endpoint: URL of the hub.
        patience_s: Seconds to wait for an answer.
    """
    answers: list[Any] = []
    # A DNS look-up can block for longer than any timeout of the request, so it runs in a thread that may be left
    # behind.
    asking = Thread(target=_ask, args=(endpoint, patience_s, answers), daemon=True)
    asking.start()
    asking.join(patience_s)
    return bool(answers)


def _ask(endpoint: str, patience_s: float, answers: list[Any]) -> None:
    from huggingface_hub.utils import get_session

    try:
        answers.append(get_session().head(endpoint, timeout=patience_s))
    except Exception:  # the hub's client may use any of several HTTP libraries
        return


def advice(name: str, kind: str = "model") -> str:
    """Tells how to get a name that was not found while the hub is offline; returns "" otherwise.

    Args:
        name: Name that was looked up.
        kind: Kind of repository: "model" or "dataset".
    """
    from huggingface_hub import constants

    if Path(name).exists() or not NAME.fullmatch(name) or not constants.HF_HUB_OFFLINE:
        return ""
    option = "" if kind == "model" else f" --repo-type {kind}"
    return (
        f"; the hub can't be reached (no network, or HF_HUB_OFFLINE is set) and '{name}' is not in its cache: run "
        f"'.venv/bin/hf download {name}{option}' where there is a network, or write a local folder"
    )
