"""Names that a run will log, as far as its settings tell; checks of monitors, study metrics, loggers' names and W&B keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_lightning.errors import InputError, did_you_mean, require_name, tool
from saerl_lightning.evaluation.metrics import macro_average, measures

if TYPE_CHECKING:
    import lightning


OPTIMISER = ("optim/grad_norm", "optim/lr", "optim/skipped_steps")
PHASES = ("generate", "score", "reference", "old", "forward", "backward", "optimizer", "sync", "plan", "wait", "guard")
GRPO = (
    "loss",
    "reward",  # on the progress bar alone
    *(f"policy/{name}" for name in ("entropy", "ratio_mean", "ratio/min", "ratio/max", "weight/min", "weight/max")),
    *(f"policy/{name}" for name in ("clip_low_frac", "clip_high_frac")),
    *(f"policy/{name}" for name in ("kl", "correction_mean", "correction_capped_frac")),
    *OPTIMISER,
    "reward/mean",
    "reward/std",
    *(f"groups/{name}" for name in ("zero_variance_frac", "effective", "tokens_per_effective")),
    *(f"completions/length_{name}" for name in ("mean", "max", "min")),
    "completions/terminated_length_mean",
    "completions/truncated_frac",
    "sampler/mismatch_mean",
    "sampler/mismatch_max",
    *(
        f"rollouts/{name}"
        for name in ("staleness", "staleness/max", "generated", "generated_tokens", "trained", "refill_rounds")
    ),
    *(f"rollouts/{name}" for name in ("replaced_frac", "scored_frac", "scored_tokens", "kept_frac")),
    *(f"replay/{name}" for name in ("share", "age", "age/max", "stored")),
    "plan/difficulty",
    "plan/pass_rate",
    *(f"time/{phase}" for phase in PHASES),
    "throughput/sampled_tokens_per_s",
    "throughput/trained_tokens_per_s",
)
REWARD = ("mean", "std", "failed_frac", "seconds")  # of each
SFT = ("loss", *OPTIMISER, "time/plan")
SAE = (
    "loss",
    *OPTIMISER,
    *(f"sae/{name}" for name in ("l0", "explained_variance", "dead_share")),
    *(f"sae/density/{name}" for name in ("above_1e-1", "below_1e-5", "median_log10")),
    *(f"val/{name}" for name in ("l0", "explained_variance", "ce_clean", "ce_spliced", "ce_zeroed", "ce_mean")),
    "val/ce_score",
    "val/ce_score_mean",
    "throughput/tokens_per_s",
)
LIGHTNINGS = ("epoch", "step")  # a checkpoint may go by these too

UNLOGGED = re.compile(r"Early stopping conditioned on metric `([^`]*)` which is not available")


@dataclass(frozen=True)
class LoggedNames:
    """Names of the metrics that a run logs.

    Args:
        exact: Names that are known.
        families: Prefixes of names that are known only during the run: topics, metrics of operations, and parts of rewards.
    """

    exact: Sequence[str]
    families: Sequence[str] = ()

    @classmethod
    def of_policy(cls, step: Sequence[str], sets: Mapping[str, int], rewards: Iterable[str] | None) -> LoggedNames:
        """Names logged by a run that trains a policy.

        Args:
            step: Names that a training step may log.
            sets: Number of samples a question, by validation set.
            rewards: Names of the rewards; null if they are not known.
        """
        measured = {name: dict.fromkeys(measures(k), 0.0) for name, k in sets.items()}
        evaluated = [f"val/{name}/{each}" for name, known in measured.items() for each in known]
        evaluated += [f"val/macro/{each}" for each in macro_average(measured)]
        own = [f"reward/{name}/{each}" for name in rewards or () for each in REWARD]
        families = [f"reward/{name}/{each}/" for name in rewards or () for each in ("count", "parts")]
        own_open = ["reward/"] if rewards is None else families
        open_ended = ["data/", *(f"val/{name}/acc/" for name in sets), *own_open]
        return cls([*evaluated, *step, *own], open_ended)

    def require(self, asks: str, name: str) -> None:
        """Refuses a name that is not logged.

        Args:
            asks: Setting that uses the name, such as `checkpoint.monitor`.
            name: Name to check.

        Raises:
            InputError: with the nearest names that are logged.
        """
        if name in self.exact or name.startswith(tuple(self.families)):
            return
        hint = did_you_mean(name, self.exact)
        if name.startswith("val/") and not any(each.startswith("val/") for each in self.exact):
            hint = "; data.val names no set to validate on"
        hint = hint or "; docs/metrics.md lists what it logs"
        raise InputError(f"{asks} is '{name[:120]}', which this run does not log{hint}")


def require_monitored(trainer: lightning.Trainer, names: LoggedNames) -> None:
    """Refuses callbacks that monitor a metric which the run does not log: best checkpoints, early stopping.

    Nothing is refused if a user's own callback could log the metric.

    Raises:
        InputError: naming the callback, the metric, and the nearest metric that is logged.
    """
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    if any(_logs(each) for each in callbacks):
        return
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in LIGHTNINGS:
            names.require(f"{type(callback).__name__}.monitor", monitor)


def refused_by_early_stopping(error: RuntimeError, logged: Iterable[str]) -> str | None:
    """Explains Lightning's error at the first validation about a metric that is not logged; None for others.

    Args:
        error: Error that Lightning raised.
        logged: Names that the run has logged so far.
    """
    if found := UNLOGGED.match(str(error)):
        return f"EarlyStopping.monitor is '{found[1]}', which this run does not log{did_you_mean(found[1], logged)}"
    return None


def is_shipped(part: object) -> bool:
    """Whether the class of a part belongs to this package, so that all its metrics are known."""
    return type(part).__module__.partition(".")[0] == "saerl_lightning"


def _logs(callback: object) -> bool:
    library = type(callback).__module__.partition(".")[0]
    return type(callback).__name__ == "LearningRateMonitor" or library not in ("saerl_lightning", "lightning")


SILENT = ("offline", "dryrun", "disabled")  # modes that send nothing


def require_file_names(logger: Any) -> None:
    """Refuses names of loggers that would lead out of the run folder; names in W&B are free.

    Args:
        logger: Settings of the logger: its `class_path` and `init_args`.

    Raises:
        InputError: naming the setting.
    """
    name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
    if name in ("CSVLogger", "TensorBoardLogger"):
        given = logger.init_args
        for key in ("name", "version", "sub_dir"):
            if isinstance(value := given.get(key), str) and (value or key == "version"):
                require_name(f"{name}.{key}", value)


def require_key(loggers: Iterable[Mapping[str, Any]], of: str = "trainer.logger has") -> None:
    """Refuses a `WandbLogger` that would send data if W&B finds no key.

    Args:
        loggers: Loggers of the trainer, each with `class_path` and `init_args`.
        of: Beginning of the message, which names the setting.

    Raises:
        InputError: if there is no key, or one whose form W&B refuses.
    """
    online = [each for each in loggers if each["class_path"].endswith("WandbLogger") and not _silent(each)]
    if online and not has_key():
        raise InputError(f"{of} a WandbLogger, but there is no W&B key; {_without_key()}")


def has_key() -> bool:
    """Whether W&B finds a key: in the environment, in `.netrc`, or in its own settings.

    Raises:
        InputError: if the key has a wrong form, or W&B refuses its settings.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    # W&B's `login` would send a request to its server.
    try:
        host = _settings().base_url
        return authenticate_session(host=host, source="login", prompt=False, update_session=False) is not None
    except AuthenticationError as error:
        raise InputError(f"W&B can't log in: {_flat(error).rstrip('.')}; {_without_key()}") from error


def _settings() -> Any:
    from pydantic import ValidationError
    from wandb.sdk.wandb_setup import _WandbSetup

    # The public `setup` would start W&B's process and store its settings for the run.
    try:
        return _WandbSetup(os.getpid()).settings
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"WANDB_{'_'.join(str(part) for part in wrong['loc'])}".upper()
        seen = "set" if "KEY" in name else f"{wrong['input']!r:.120}"
        raise InputError(f"{name} is {seen}, and W&B does not take it: {wrong['msg']}; mend it or unset it") from error


def _silent(logger: Mapping[str, Any]) -> bool:
    given = {**(logger.get("dict_kwargs") or {}), **(logger.get("init_args") or {})}
    return bool(given.get("offline")) or (given.get("mode") or _settings().mode) in SILENT


WANDB_FOLDER = re.compile(r"run-\d{8}_\d{6}-(.+)")  # the time of a start, and the run's id


def continue_run(loggers: Iterable[Any], run_dir: Path) -> None:
    """Lets each `WandbLogger` without an id of its own go on as the W&B run that began in the run folder.

    Args:
        loggers: Loggers of the trainer, before they begin.
        run_dir: Folder of the run; W&B's folder in it has a folder for each start, named by its time and the run's id.
    """
    names = [each.name.removeprefix("offline-") for each in (run_dir / "wandb").glob("*run-*")]
    ids = [found[1] for found in map(WANDB_FOLDER.fullmatch, sorted(names)) if found]  # the earliest first
    for logger in loggers:
        settings = getattr(logger, "_wandb_init", None)
        if ids and settings is not None and settings.get("id") is None:
            settings.update(id=ids[0], resume="allow")
            logger._id = ids[0]


def said_of_server(error: BaseException) -> str | None:
    """Explains an error of W&B's server, with what to do; None for any other error."""
    # The module's name is compared, because importing wandb only for this takes seconds.
    if not type(error).__module__.startswith("wandb."):
        return None
    from wandb.errors import CommError

    if not isinstance(error, CommError):
        return None
    return f"W&B can't be used: {_flat(error)[:300]}; check the network and the key, or set WANDB_MODE=offline"


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())


def _without_key() -> str:
    return (
        f"set WANDB_API_KEY (or run '{tool('wandb')} login' once), write mode: offline into the logger's init_args (or set "
        "WANDB_MODE=offline) to keep the run on disk, or take another logger, such as TensorBoardLogger"
    )
