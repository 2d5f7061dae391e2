"""`serve`: starts the vLLM servers of a run on this machine, or prints the commands that start them elsewhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning
import torch

from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError, program
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.serving.command import ServerNeeds, server_command
from saerl_lightning.rollout.serving.connection import api_key
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.serving.processes import LOOK_S, ServerProcesses
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.verbs.label import require_policy


def serve(model: PolicyModule, datamodule: PromptDataModule, trainer: lightning.Trainer, print_commands: bool) -> None:
    """Starts the servers of the run's ServerEngine, waits until they answer, and keeps them until Ctrl-C.

    Args:
        model: Module of the run; its weights are not loaded here.
        datamodule: Datamodule whose lengths are read; its prompts are not.
        trainer: Trainer that gives the precision.
        print_commands: Whether to print the commands, one for each server, in place of starting them.

    Raises:
        InputError: if the run has no ServerEngine, or a server ends or does not answer in time.
    """
    require_policy(model, datamodule)
    engine = model.engine
    if not isinstance(engine, ServerEngine):
        raise InputError(
            f"model.engine is {type(engine).__name__}, which has no servers; add -c configs/engine/server.yaml"
        )
    needs = server_needs(model, engine, datamodule, trainer)
    servers = engine.servers()
    if print_commands:
        for number, server in enumerate(servers):
            print(f"# {server.url}\n{server_command(server, number, needs, engine.server)}")
        return
    if far := [each.url for each in servers if not each.is_near]:
        raise InputError(
            f"{far[0]} is not on this machine's loopback, so it is not started from here; --print_commands true prints "
            "the command for its machine"
        )
    _keep(engine, needs)


def server_needs(
    model: PolicyModule, engine: ServerEngine, datamodule: PromptDataModule, trainer: lightning.Trainer
) -> ServerNeeds:
    """What a run will need of its servers, before its weights and prompts are loaded.

    Args:
        model: Module of the run.
        engine: Engine of the run.
        datamodule: Datamodule of the run.
        trainer: Trainer that gives the precision.
    """
    sets = [*datamodule.val.values(), *datamodule.test.values()]
    samplings = [each.sampling or datamodule.val_sampling for each in sets if isinstance(each, ValidationSet)]
    samplings += [datamodule.val_sampling, *([model.sampling] if isinstance(model, GRPOModule) else [])]
    longest = max(each.max_tokens for each in samplings)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = mixed.get(str(trainer.precision)) or getattr(torch, model.policy.dtype)
    rank = model.policy.lora.rank if model.policy.lora else 0
    return engine.needs(model.policy.path, dtype, datamodule.chat.max_prompt_tokens + longest, rank)


def _keep(engine: ServerEngine, needs: ServerNeeds) -> None:
    """Runs the servers until Ctrl-C, SIGTERM, or the end of one of them."""
    processes = ServerProcesses()
    fleet = Fleet(engine.servers(), api_key(engine.api_key_env), 1, engine.timeout_s, engine.retries)
    try:
        with _ended_by_sigterm():
            processes.start(fleet, needs, engine.server)
            print(
                f"ready: {', '.join(each.url for each in fleet.servers)}; give `{program()} fit` the same configs and flags, "
                "in another shell; Ctrl-C ends the servers",
                flush=True,
            )
            while True:
                time.sleep(LOOK_S)
                processes.require_running()
    except KeyboardInterrupt:
        print("ending the servers", flush=True)
    finally:
        fleet.close()
        processes.close()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Treats SIGTERM as Ctrl-C inside the block."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
