"""Whether a run that logs to W&B can log in: asked at the door, without the network.

W&B itself asks as it makes the run, and where there is no terminal to ask at it raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from saerl_lightning.errors import InputError

SILENT = ("offline", "dryrun", "disabled")  # modes that send nothing
KEYLESS = "set WANDB_API_KEY (or run '.venv/bin/wandb login' once), or WANDB_MODE=offline to keep the run on disk"


def require_key(loggers: Iterable[Mapping[str, Any]], of: str = "trainer.logger has") -> None:
    """Refuses a `WandbLogger` that would send what it gets, where W&B knows no key.

    Args:
        loggers: of the trainer, each with `class_path` and `init_args`.
        of: whose logger it is, for the message.

    Raises:
        InputError: if there is no key, or one that W&B refuses by its look.
    """
    online = [each for each in loggers if each["class_path"].endswith("WandbLogger") and not _silent(each)]
    if online and not has_key():
        raise InputError(f"{of} a WandbLogger, but there is no W&B key; {KEYLESS}")


def has_key() -> bool:
    """Whether W&B finds a key where it looks for one: the environment, `.netrc`, its own settings.

    Raises:
        InputError: if it finds one that can't be a key, or settings that it does not take.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:  # its `login` would ask the server who this is
        host = _settings().base_url
        return authenticate_session(host=host, source="login", prompt=False, update_session=False) is not None
    except AuthenticationError as error:
        raise InputError(f"W&B can't log in: {_flat(error).rstrip('.')}; {KEYLESS}") from error


def _settings() -> Any:
    from wandb.sdk.wandb_setup import _WandbSetup

    try:  # the public `setup` would start W&B's process, and keep what it has read for the run
        return _WandbSetup(os.getpid()).settings
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"WANDB_{'_'.join(str(part) for part in wrong['loc'])}".upper()
        seen = "set" if "KEY" in name else f"{wrong['input']!r:.120}"
        raise InputError(f"{name} is {seen}, and W&B does not take it: {wrong['msg']}; mend it or unset it") from error


def _silent(logger: Mapping[str, Any]) -> bool:
    given = {**(logger.get("dict_kwargs") or {}), **(logger.get("init_args") or {})}
    return bool(given.get("offline")) or (given.get("mode") or _settings().mode) in SILENT


def said_of_server(error: BaseException) -> str | None:
    """What a user can do where W&B's server is not reached, or refuses; None for any other error."""
    if not type(error).__module__.startswith("wandb."):  # to import it only for this would take seconds
        return None
    from wandb.errors import CommError

    if not isinstance(error, CommError):
        return None
    return f"W&B can't be used: {_flat(error)[:300]}; check the network and the key, or set WANDB_MODE=offline"


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())
