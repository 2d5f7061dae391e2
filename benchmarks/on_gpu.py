"""All that is to be measured on a GPU, in one command; `--device cpu --model tiny` tries it without one.

Parts, each in a process of its own: `step` (beside TRL's GRPOTrainer, as in grpo_step.py, in bf16-mixed on a GPU),
`sampling` and `sync` (HFEngine, and VLLMEngine with `--vllm`), `extraction` (hidden states of prompts), `memory` (a
run's peak beside the line that `plan` and `fit` print). Policies have random weights or are SmolLM2: times depend on
sizes, not on what was learned. One JSON line a part; `gpus.py` is something else, the tables of estimates. Tried on a
CPU only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from workload import LARGE, ROOT, Workload, build_policy, write_prompts

if TYPE_CHECKING:
    from saerl_lightning.rollout.engine import RolloutEngine

PARTS = ("step", "sampling", "extraction", "memory")
MODELS = ("tiny", "smollm2", *LARGE)


@dataclass(frozen=True)
class Place:
    """Where and on what a part runs."""

    work: Workload
    device: str
    vllm: bool
    folder: Path

    @property
    def gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device != "cpu"

    @property
    def flags(self) -> list[str]:
        """Flags of our command line."""
        engine = ["--model.engine=VLLMEngine", "--model.engine.sleep_level=1"] if self.vllm else []
        return [*engine, *(["--trainer.accelerator=gpu", "--trainer.precision=bf16-mixed"] if self.gpu else [])]


def seconds(act: Callable[[], Any], place: Place, repeats: int = 3) -> float:
    """Median seconds of a call; the GPU has finished what it was asked before the clock is read."""
    import torch

    def once() -> float:
        began = time.perf_counter()
        act()
        if place.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()  # warms up
    return median(once() for _ in range(repeats))


def step(place: Place) -> dict[str, float]:
    """Steps of both trainers, in turn: seconds, phases and memory."""
    from step_sides import SHOWN, in_lockstep, own_command, trl_command

    policy = build_policy(place.work.model, place.folder)
    prompts = write_prompts(place.folder / "prompts.jsonl", policy, None, place.work)
    commands = {
        "TRL": [*trl_command(place.work, policy, prompts, place.folder / "trl"), *["--gpu"] * place.gpu],
        "ours": own_command(place.work, policy, prompts, place.folder / "run", place.flags),
    }
    done = in_lockstep(place.work, commands, place.folder)
    found = {"step, TRL / ours": done["TRL"].seconds / done["ours"].seconds}
    for name, side in done.items():
        found |= {f"{name}: step, s": side.seconds, f"{name}: peak, GB": side.peak_gb}
        found |= {f"{name}: {column}, s": side.shown(column) for column in SHOWN}
    return found


def sampling(place: Place) -> dict[str, float]:
    """Tokens a second of each engine, and seconds and bytes of a weight sync."""
    from saerl_lightning.rollout.hf import HFEngine

    found = _sampled(HFEngine(), "HFEngine", place)
    if place.vllm:
        from saerl_lightning.rollout.vllm import VLLMEngine

        found |= _sampled(VLLMEngine(), "VLLMEngine", place)
    return found


def _sampled(engine: RolloutEngine, name: str, place: Place) -> dict[str, float]:
    import torch

    from saerl_lightning.policy.load import Policy
    from saerl_lightning.policy.weights import named_weights
    from saerl_lightning.records import Sampling

    work, policy = place.work, Policy(str(build_policy(place.work.model, place.folder / name)))
    model = policy.load_model().to(dtype=torch.bfloat16 if place.gpu else torch.float32)  # pyright: ignore[reportCallIssue]  # as below
    model.to(torch.device(place.device))  # pyright: ignore[reportArgumentType]  # the stub takes `self` for an argument
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (work.prompts, work.prompt_tokens), generator=rng).tolist()
    drawn = Sampling(work.group_size, max_tokens=work.completion_tokens)
    engine.start(model, policy.load_tokenizer(), work.prompt_tokens + work.completion_tokens)
    try:
        sync = seconds(lambda: engine.load_weights(named_weights(model), 1), place)
        sampled = seconds(lambda: engine.generate(ids, drawn), place)
    finally:
        engine.close()
    size = sum(tensor.nbytes for _, tensor in named_weights(model)) / 1e9
    return {
        f"{name}: sampled tokens/s": work.sampled_tokens / sampled,
        f"{name}: sync, s": sync,
        f"{name}: sync, GB": size,
    }


def extraction(place: Place) -> dict[str, float]:
    """Tokens a second of hidden states at the middle layer, model loaded before."""
    from workload import CORPUS, procedural_prompts

    from saerl_lightning.signals.hidden import HiddenSignals
    from saerl_lightning.signals.model import ReadModel, encode

    policy = build_policy(place.work.model, place.folder)
    dtype = "bfloat16" if place.gpu else "float32"
    source = HiddenSignals(ReadModel(str(policy), dtype=dtype, device=place.device), token_budget=16_384)
    prompts = procedural_prompts(CORPUS, 64 * place.work.prompts, 0)
    read = source.reader()
    tokens = sum(map(len, encode(prompts, source.model.load_tokenizer())))
    taken = seconds(lambda: list(read(prompts)), place)
    return {"read tokens/s": tokens / taken, "prompts": float(len(prompts)), "tokens": float(tokens)}


def memory(place: Place) -> dict[str, float]:
    """What `fit` estimates, and what a run then needs."""
    from step_memory import measure

    estimated, measured = measure(place.work, place.folder, place.flags)
    return {"estimated, GB": estimated, "measured, GB": measured, "estimate / measured": estimated / measured}


def run_part(name: str, given: argparse.Namespace) -> None:
    """Measures one part in this process, and prints it as JSON."""
    work = Workload(given.model, given.prompts, given.prompt_tokens, given.steps, given.group, given.completion_tokens)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(work, given.device, given.vllm, Path(folder))
        found = {"step": step, "sampling": sampling, "extraction": extraction, "memory": memory}[name](place)
    rounded = {key: float(f"{value:.4g}") for key, value in found.items()}
    print(json.dumps({"part": name, "model": given.model, "device": _device(given.device), **rounded}), flush=True)


def _device(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device != "cpu" else "cpu"


def main() -> None:
    """Runs the parts one after another; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="half", choices=MODELS, help="half: 0.3 billion random weights; large: 1.0")
    parser.add_argument("--vllm", action="store_true", help="also VLLMEngine; our step then samples with it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    for name, value, told in (
        ("prompts", 8, "prompts of a step"),
        ("group", 8, "completions a prompt"),
        ("prompt-tokens", 256, "tokens of a prompt"),
        ("completion-tokens", 256, "tokens of every completion"),
        ("steps", 5, "counted steps"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=told)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part, given)
        return
    arguments = [sys.executable, __file__, *sys.argv[1:]]
    failed = [part for part in given.parts if subprocess.run([*arguments, "--part", part], cwd=ROOT).returncode]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
