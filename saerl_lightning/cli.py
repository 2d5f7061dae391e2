"""The command line: builds trainer, module and datamodule from YAML and flags; each tool has its own parser.

Later configs and flags win. Importing this module imports every shipped part, so that YAML may use their short names.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import Namespace, auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from saerl_lightning.cluster import slurm
from saerl_lightning.data.resuming.other_plan import differences_named
from saerl_lightning.errors import InputError, RunStopped, program
from saerl_lightning.evaluation.report import accuracy_table, write_accuracy
from saerl_lightning.files import disk_is_full, said_of_disk
from saerl_lightning.mistakes import one_line, printed
from saerl_lightning.parser import Refused, RunParser, dropped_callbacks
from saerl_lightning.policy.weights import require_usable
from saerl_lightning.ranges import SEEDS
from saerl_lightning.ranks import processes
from saerl_lightning.ranks.collectives import agreed
from saerl_lightning.ranks.settings import RunConfig
from saerl_lightning.registration import register_classes
from saerl_lightning.run_folder import LAST, RunFolder, checkpoint_file, named_by_time, require_place
from saerl_lightning.training import loggers
from saerl_lightning.training.callbacks import PredictionWriter, Stopped, StopSignals
from saerl_lightning.training.checkpoints import RunCheckpoint, WholeCheckpoints
from saerl_lightning.training.feedback import RunLimits, ending, lines_in_place_of_bar
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.training.rng import RandomStates
from saerl_lightning.training.tables.question_table import accuracy_of_sets
from saerl_lightning.verbs.names import DESCRIPTION, TOOLS
from saerl_lightning.verbs.needed_memory import needed_memory
from saerl_lightning.verbs.quick import answered
from saerl_lightning.verbs.run_tools import ALIASES, ARGUMENTS, ToolTrainer

register_classes()

# Warnings of Lightning that need no action here. They are not shown.
HARMLESS = (
    "LightningCLI's args parameter is intended",  # the demo runs several command lines
    "The dirpath has changed",  # a checkpoint may be evaluated in another run folder
    r"\s*By default only one JsonargparseDeprecationWarning",  # Lightning uses a deprecated name of jsonargparse
    r"\s*``instantiate_classes`` was deprecated",
    ".*LeafSpec.* is deprecated",
    "Using ModelCheckpoint with manual optimization",  # checkpoints are meant to have the weights after the step
    "Total length of `list` across ranks is zero",  # there may be no validation sets
    "It is recommended to use `self.log.*sync_dist=True",  # vLLM's process group makes one process look like several
    "To exit: use 'exit', 'quit'",  # of IPython, behind the line that says how a stopped run goes on
    "The '.*_dataloader' does not have many workers",  # prompts are already encoded
)


class RunCLI(LightningCLI):
    """LightningCLI with a run folder, a checkpoint section, and one-line errors instead of tracebacks.

    Args:
        module: Base class of the modules.
        datamodule: Base class of the datamodules.
        args: Command line without the program's name; null takes that of the process.
        settings: Keyword arguments of LightningCLI.
    """

    def __init__(self, module: type, datamodule: type, *, args: list[str] | None = None, **settings: Any) -> None:
        self.verb = next(iter(sys.argv[1:] if args is None else args), None)
        super().__init__(module, datamodule, args=args, **settings)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Builds the parser of the called command; those of the others stay empty, as each takes 0.1 s."""
        if self.verb in self.subcommands() and self.verb != subcommand:
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for alias, flag in ALIASES.items():
            if action := parser._option_string_actions.get(flag):
                action.option_strings = [*action.option_strings, alias]
                parser._option_string_actions[alias] = action
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `run_dir`, `overwrite` and `checkpoint`, and links the trainer's folders to the run folder."""
        parser.add_argument("--run_dir", type=str, default=named_by_time(), help="folder the run writes to")
        parser.add_argument("--overwrite", type=bool, default=False, help="delete an older run in run_dir")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.every_n_train_steps": 50,
                "checkpoint.save_on_train_epoch_end": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments(
            "run_dir", "checkpoint.dirpath", compute_fn=lambda folder: str(Path(folder, "checkpoints"))
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, and the tools that read a run's configs."""
        return {**LightningCLI.subcommands(), **ARGUMENTS}

    @property
    def _settings(self) -> Namespace:
        """Parsed settings of the subcommand."""
        return self.config[self.config.subcommand]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line; refuses seeds out of range and unreadable checkpoints before anything is built."""
        super().parse_arguments(parser, args)
        seed = self._settings.seed_everything  # of Lightning; the classes' own have their ranges
        require_place(self._settings.run_dir)
        if type(seed) is int and not SEEDS.holds(seed):
            raise InputError(f"seed_everything is {seed}; write a whole number {SEEDS}")
        for sentence in dropped_callbacks(_config_files(self._settings)):
            print(f"warning: {sentence}", file=sys.stderr)
        if self.config.subcommand in ARGUMENTS:
            return
        if self._settings.weights_only is False:
            raise InputError("weights_only is false, which would run code out of the checkpoint; leave it out")
        if getattr(rank_zero_only, "rank", 0) == 0:  # which logs
            loggers.require_key(
                each.as_dict() for each in _as_list(self._settings.trainer.logger) if isinstance(each, Namespace)
            )
        # With null, Lightning would unpickle a checkpoint from a web address, which can run code.
        self._settings.weights_only = True
        fitting = self.config.subcommand == "fit"
        checkpoint = checkpoint_file(self._settings.ckpt_path, self._settings.run_dir, fitting)
        if checkpoint is not None:
            strategy = self._settings.trainer.strategy
            named = str(getattr(strategy, "class_path", strategy))
            require_usable(checkpoint, fitting, sharded=named == "sharded" or named.endswith("ShardedStrategy"))

    def _parse_ckpt_path(self) -> None:
        """Reads no settings from a checkpoint: Lightning would let them win over the flags."""

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Builds the trainer; checkpoints are written atomically if its strategy writes plain files.

        Raises:
            InputError: if Lightning refuses a setting of its trainer.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        lines_in_place_of_bar(trainer)
        return trainer

    def before_instantiate_classes(self) -> None:
        """Checks that all loggers write inside the run folder.

        Raises:
            InputError: if a logger's name or version would lead out of the folder.
        """
        config = self._settings
        for logger in _as_list(config.trainer.logger):
            loggers.require_file_names(logger)
            if getattr(logger, "init_args", None) is not None and "save_dir" in logger.init_args:
                logger.init_args.save_dir = config.run_dir

    def instantiate_classes(self) -> None:
        """Builds all objects, and turns errors of their constructors into one-line errors."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            raise InputError(one_line(str(error))) from error

    def fit(self, **kwargs: Any) -> None:
        """Trains in a run folder of its own; a run refused before its first step leaves no files.

        Raises:
            RunStopped: if the disk is full, with advice on resuming; or if early stopping monitors a metric that is
                never logged.
        """
        try:
            processes.require_first_machine(self.trainer)
            if isinstance(self.model, PolicyModule):  # before the processes of other ranks are started
                self.model.require_processes(self.trainer, self.datamodule)
            processes.meet(self.trainer, self.model)
            with self._claimed(), self._signals().heeded(), self._children_ended(), self._differences_named():
                loggers.continue_run(self.trainer.loggers, Path(self._settings.run_dir))
                self._say(f"run folder: {self._settings.run_dir}")
                if self.trainer.is_global_zero and (memory := needed_memory(self.model, self.datamodule, self.trainer)):
                    self._say(str(memory))
                began = time.monotonic()
                self.trainer.fit(**kwargs)
                if getattr(getattr(self.datamodule, "resume", None), "validation_due", False):  # all steps were taken
                    self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            self._say(ending(self.trainer, Path(self._settings.run_dir), time.monotonic() - began))
        except Stopped as stopped:
            stopped.said = f"{stopped.signal}: stopped at step {self.trainer.global_step}; {self._how_to_go_on()}"
            if self.trainer.is_global_zero:
                print(stopped.said, file=sys.stderr)
                slurm.requeue_after(stopped.signal)
            raise
        except RuntimeError as error:
            if said := loggers.refused_by_early_stopping(error, self.trainer.callback_metrics):
                raise RunStopped(said) from error
            raise
        except OSError as error:
            if disk_is_full(error):
                raise RunStopped(f"the disk is full ({error}); free some of it, then {self._how_to_go_on()}") from error
            raise

    def _say(self, text: str) -> None:
        """Prints a text on the first process."""
        if self.trainer.is_global_zero:
            print(text, flush=True)

    def _signals(self) -> StopSignals:
        """Signals on which a checkpoint is written."""
        signals = StopSignals()
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.signals = signals
        return signals

    @contextmanager
    def _children_ended(self) -> Iterator[None]:
        """Ends the processes of other ranks if this one, which started them, ends early."""
        try:
            yield
        except BaseException:
            processes.end(self.trainer)
            raise

    def _how_to_go_on(self) -> str:
        """Advice on resuming: from the last checkpoint, or from the start if there is none."""
        folder = RunFolder(Path(self._settings.run_dir))
        if folder.has_checkpoint:
            return f"go on with: {program()} fit -c {shlex.quote(str(folder.path / 'config.yaml'))} --ckpt_path last"
        return "nothing was saved yet: give the same command again"

    def _differences_named(self) -> AbstractContextManager[None]:
        """Names what differs from the run of the checkpoint, if its plan is another."""
        checkpoint = checkpoint_file(self._settings.ckpt_path, self._settings.run_dir, fitting=True)
        return differences_named(checkpoint, lambda: yaml.safe_load(self._parser("fit").dump(self._settings)))

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Locks the run folder in the first process; if it can't be had, all processes that have met end."""
        config = self._settings
        given: str | None = config.ckpt_path
        last = given in LAST
        checkpoint = checkpoint_file(given, config.run_dir, fitting=True) if last or given is None else Path(given)
        claimed = RunFolder(Path(config.run_dir)).claimed(config.overwrite, checkpoint, last)
        with ExitStack() as held:
            with agreed():
                held.enter_context(claimed if self.trainer.is_global_zero else nullcontext())
            yield

    def validate(self, **kwargs: Any) -> None:
        """Evaluates on the sets of `data.val`; prints their accuracy and writes it to `accuracy-validate.json`."""
        self._evaluate(self.trainer.validate, "val", "accuracy-validate.json", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Evaluates on the sets of `data.test`; prints their accuracy and writes it to `accuracy-test.json`."""
        self._evaluate(self.trainer.test, "test", "accuracy-test.json", kwargs)

    def _evaluate(self, run: Callable[..., Any], stage: str, file: str, settings: dict[str, Any]) -> None:
        if not isinstance(self.model, PolicyModule):
            run(**settings)
            return
        # Lightning's own list of metrics has neither intervals nor numbers of questions.
        run(**{**settings, "verbose": False})
        sets = accuracy_of_sets(self.model, stage)
        if self.trainer.is_global_zero and sets:
            place = Path(self._settings.run_dir, file)
            write_accuracy(sets, place)
            Console(width=100).print(accuracy_table(sets))
            print(f"all estimates: {place}")

    def predict(self, **kwargs: Any) -> None:
        """Samples completions; `PredictionWriter` writes them, so the trainer does not collect them."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})


def _config_files(config: Namespace) -> list[Path]:
    """Files given with `-c`, in order; empty in the processes of other ranks."""
    files = [] if "LOCAL_RANK" in os.environ else config.get("config") or []
    return [Path(str(file)) for file in files if Path(str(file)).is_file()]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None or isinstance(value, bool) else value if isinstance(value, list) else [value]


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "💡 Tip" not in record.getMessage()


def run(args: Sequence[str | Path] | None = None, cli_class: type[RunCLI] = RunCLI) -> Any:
    """Runs a command line, of any verb that `saerl` takes, from Python.

    Args:
        args: Command line without the program's name; null takes that of the process. Paths may be objects.
        cli_class: Class that parses and runs the verbs which compose trainer, model and data.

    Returns:
        After fit, validate, test, predict, plan, label, show and memory the RunCLI, which has `trainer`, `model` and
        `datamodule`; after a tool what it returns; None if something was only printed.

    Raises:
        InputError: for mistakes in the arguments, and settings that are refused.
        RunStopped: for a run that must not go on, a full disk, and an error of W&B's server.
    """
    args = sys.argv[1:] if args is None else [str(each) for each in args]
    try:
        if answered(args):
            return None
        return _tool(args[0], args[1:]) if args[0] in TOOLS else _composed(args, cli_class)
    except Refused as refused:
        raise InputError(str(refused)) from None
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except SystemExit as ended:
        if ended.code:
            raise
        return None  # --help and --print_config end so
    except Exception as error:
        said = said_of_disk(error) if isinstance(error, OSError) else loggers.said_of_server(error)
        if said is None:
            raise
        raise RunStopped(said) from error


def _tool(name: str, args: list[str]) -> Any:
    module, _, function = TOOLS[name].partition(":")
    tool = getattr(importlib.import_module(module), function)
    about = (inspect.getdoc(tool) if callable(tool) else sys.modules[module].__doc__) or ""
    prog, description = f"{program()} {name}", about.partition("\n\n")[0]
    return auto_cli(tool, args=args, as_positional=True, parser_class=RunParser, prog=prog, description=description)


def _composed(args: list[str], cli_class: type[RunCLI]) -> RunCLI:
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    return cli_class(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=RunConfig,
        save_config_kwargs={"save_to_log_dir": False},  # one config.yaml, in the run folder
        load_from_checkpoint_support=False,  # hyperparameters stored in a checkpoint would win over the flags
        trainer_defaults={
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            # Part of every run, whatever its configs list.
            "callbacks": [RandomStates(), PredictionWriter(), RunLimits()],
        },
        trainer_class=ToolTrainer,
        parser_class=RunParser,
        parser_kwargs={"description": DESCRIPTION, "prog": program()},
        args=args,
    )


def main() -> None:
    """Runs the command line; bad input, a full disk and refused settings end with one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn about every process started after them
    try:
        run()
    except (InputError, RunStopped) as error:
        if not (getattr(error, "everywhere", False) and getattr(rank_zero_only, "rank", 0)):
            print(f"error: {printed(str(error))}", file=sys.stderr)
        sys.exit(2)
