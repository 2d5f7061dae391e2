"""The peer: steps of TRL's GRPOTrainer with transformers generation, timed by phase.

Its settings are those that make it fastest on a CPU: float32 and no gradient checkpointing (its defaults, bfloat16 with
checkpointing, are several times slower there), all rows of a step in one batch, no reference model. It writes one JSON
line a step and waits for a line on stdin before each: `yes | PYTHONPATH=benchmarks python -m peers.trl_step ...` runs it
alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lockstep import Gate
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from workload import reward

from saerl_lightning.training.metrics import Phases

# What of the trainer is timed as which phase. Clipping, tokenising, decoding and logging are the rest.
TIMED = {"_generate_single_turn": "generate", "_calculate_rewards": "score", "_compute_loss": "forward"}


class StepGate(TrainerCallback):
    """Times the optimiser, reports every step and waits before the next."""

    def __init__(self, reports: str, phases: Phases) -> None:
        self.gate = Gate(reports)
        self.phases = phases
        self.completion_tokens = 0.0
        self.zero_variance = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Ends the step before and begins this one."""
        self.gate.wait(self.phases.drain(), self.completion_tokens, self.zero_variance)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Starts the optimiser's time, after clipping."""
        self._optimizer = self.phases("optimizer")
        self._optimizer.__enter__()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Ends it."""
        self._optimizer.__exit__(None, None, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Remembers how long the completions were, and how many groups taught nothing."""
        logged = logs or {}
        self.completion_tokens = float(logged.get("completions/mean_length", self.completion_tokens))
        self.zero_variance = float(logged.get("frac_reward_zero_std", self.zero_variance))


def rewards(completions: Sequence[Sequence[Mapping[str, str]]], id: Sequence[str], **_: Any) -> list[float | None]:
    """Rewards a completion by a number made of its text, one of a flat prompt by a constant."""
    return [reward(uid, messages[0]["content"]) for uid, messages in zip(id, completions, strict=True)]


def read_prompts(file: str) -> Dataset:
    """Prompts as chats, in the file's order, with their ids."""
    records = [json.loads(line) for line in Path(file).read_text().splitlines()]
    chats = [[{"role": "user", "content": record["prompt"]}] for record in records]
    return Dataset.from_list([{"prompt": chat, "id": r["id"]} for chat, r in zip(chats, records, strict=True)])


def settings(given: argparse.Namespace) -> GRPOConfig:
    """The trainer's configuration; what is not named here is TRL's default."""
    return GRPOConfig(
        output_dir=given.folder,
        per_device_train_batch_size=given.prompts * given.group_size,
        gradient_accumulation_steps=1,
        num_generations=given.group_size,
        max_completion_length=given.completion_tokens,
        max_steps=given.steps,
        shuffle_dataset=False,
        beta=0.0,
        learning_rate=1e-6,
        temperature=1.0,
        bf16=given.gpu,
        gradient_checkpointing=False,
        use_cpu=not given.gpu,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def time_method(owner: object, name: str, phases: Phases, phase: str) -> None:
    """Replaces a method of one object by itself, timed."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with phases(phase):
            return method(*args, **kwargs)

    setattr(owner, name, timed)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="policy folder")
    parser.add_argument("--data", required=True, help="JSON lines with `id` and `prompt`, served in this order")
    parser.add_argument("--folder", required=True, help="where TRL may write")
    parser.add_argument("--steps", type=int, default=7, help="optimiser steps")
    parser.add_argument("--prompts", type=int, default=4, help="a step")
    parser.add_argument("--group-size", type=int, default=8, help="completions a prompt")
    parser.add_argument("--completion-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--gpu", action="store_true", help="train on a GPU, in bf16 beside float32 weights")
    parser.add_argument("--reports", default="/dev/stdout", help="file that gets one JSON line a step")
    return parser.parse_args()


def main() -> None:
    """Trains for the asked-for steps."""
    given, phases = parse(), Phases()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        reward_funcs=[rewards],
        args=settings(given),
        train_dataset=read_prompts(given.data),
        callbacks=[StepGate(given.reports, phases)],
    )
    for name, phase in TIMED.items():
        time_method(trainer, name, phases, phase)
    time_method(trainer.accelerator, "backward", phases, "backward")
    trainer.train()


if __name__ == "__main__":
    main()
