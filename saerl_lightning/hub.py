"""Looks up names on the Hugging Face hub and uploads folders; without a network, uses the cache or refuses in seconds.

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

from saerl_lightning.errors import InputError, RunStopped, tool

PATIENCE_S = 5.0
# Names that the hub accepts. A path with more parts can only be local.
NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
OWNED = re.compile(r"\w[\w.-]*/[\w.-]+")  # names of one's own repositories


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


def folder_of(name: str) -> Path | None:
    """Returns the folder with a model's files: a hub name's is its snapshot in the cache, of the version that is loaded.

    Args:
        name: Name on the hub, or a local folder.

    Returns:
        The folder; None if there is no config.json in it. It may lack other files.
    """
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return Path(name)
    look_up(name)
    try:
        config = cached_file(name, "config.json")
    except (OSError, ValueError):
        return None
    return None if config is None else Path(config).parent


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
        f"'{tool('hf')} download {name}{option}' where there is a network, or write a local folder"
    )


def require_upload(repository: str) -> None:
    """Refuses a repository that the user can't upload to. Nothing is created.

    Args:
        repository: Name of the model repository, `owner/name`.

    Raises:
        InputError: if the name has another form, the hub does not answer, no valid token is found, or the owner is neither
            the user nor an organisation of the user.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if not OWNED.fullmatch(repository):
        raise InputError(f"'{repository}' is no name on the hub; write OWNER/NAME, such as my-name/my-model")
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise InputError(
            f"the hub can't be reached (no network, or HF_HUB_OFFLINE is set), so '{repository}' can't be written; leave "
            f"--push_to_hub out, and upload the folder later with '{tool('hf')} upload'"
        )
    try:
        user = HfApi(endpoint=constants.ENDPOINT).whoami()
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"no token for the hub is found: run '{tool('hf')} auth login', set HF_TOKEN, or leave --push_to_hub out"
        ) from error
    except Exception as error:  # the hub's client may use any of several HTTP libraries
        raise InputError(
            f"the hub refuses the token ({_said(error)}): run '{tool('hf')} auth login' anew, or set HF_TOKEN"
        ) from error
    owners = [user["name"], *(each["name"] for each in user.get("orgs", []))]
    if repository.split("/")[0] not in owners:
        raise InputError(
            f"you can't write to '{repository}': the token is of {', '.join(owners)}; name one of these as owner"
        )


def upload(folder: Path, repository: str, private: bool) -> str:
    """Uploads a folder as a commit to a model repository, which is created if it does not exist.

    Args:
        folder: Folder whose files are uploaded.
        repository: Name of the repository, `owner/name`.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        RunStopped: if the hub refuses or does not answer; the folder is left as it is.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        place = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the policy")
    except Exception as error:  # the hub's client may use any of several HTTP libraries
        raise RunStopped(
            f"the upload to '{repository}' failed: {_said(error)}; '{folder}' is whole: go on with "
            f"'{tool('hf')} upload {repository} {folder}'"
        ) from error
    return str(place)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
