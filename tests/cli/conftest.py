"""A workplace for command lines: a tiny policy, prompt files, and the shipped configs, all on a CPU."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from saerl_lightning import cli
from saerl_lightning.__main__ import main
from saerl_lightning.assets.tiny import build_tiny_policy
from tests.cli.wandb_server import server as server

CONFIGS = Path(__file__).parents[2] / "configs"
BASELINE = ["-c", str(CONFIGS / "grpo.yaml"), "-c", str(CONFIGS / "engine/hf.yaml")]
REWARD = [{"class_path": "FormatReward", "init_args": {"pattern": "[a-m]"}}]  # chance decides it within every group


def record(i: int, kind: str = "train") -> dict:
    topic = "odd" if i % 2 else "even"
    prompt = f"{kind}: what is {i} + {i + 1}?"
    return {"id": f"{kind}-{i}", "prompt": prompt, "answer": str(2 * i + 1), "topic": topic, "difficulty": i % 5}


def write_prompts(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@dataclass(frozen=True)
class Workplace:
    """A folder with a policy, prompts and a run folder to be, and the command lines that use them."""

    folder: Path
    policy: Path

    def __post_init__(self) -> None:
        write_prompts(self.train, [record(i) for i in range(12)])
        write_prompts(self.dev, [record(i, "dev") for i in range(4)])

    @property
    def train(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def dev(self) -> Path:
        return self.folder / "dev.jsonl"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def last(self) -> Path:
        return self.run_dir / "checkpoints" / "last.ckpt"

    def command(self, verb: str, *flags: str) -> list[str]:
        """A small command line; the flags come last, so they win."""
        settings = {
            "seed_everything": 0,
            "run_dir": self.run_dir,
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 3,
            "model.policy.path": self.policy,
            "model.rewards": json.dumps(REWARD),
            "model.sampling.group_size": 4,
            "model.sampling.max_tokens": 8,
            "model.micro_tokens": 512,
            "model.optimizer": "torch.optim.AdamW",
            "model.optimizer.lr": 0.01,
            "data.train": self.train,
            "data.batch_size": 2,
            "data.chat.max_prompt_tokens": 64,
            "data.val_sampling.group_size": 2,
            "data.val_sampling.max_tokens": 8,
        }
        return [verb, *BASELINE, *(f"--{name}={value}" for name, value in settings.items()), *flags]

    def with_dev(self) -> str:
        return "--data.val=" + json.dumps({"dev": str(self.dev)})


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    texts = [f"{each['prompt']} {each['answer']}" for each in map(record, range(50))]
    return build_tiny_policy(str(tmp_path_factory.mktemp("tiny") / "policy"), texts, hidden_size=64, layers=2)


@pytest.fixture
def workplace(tmp_path, policy) -> Workplace:
    return Workplace(tmp_path, policy)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    workplace: Workplace
    cli: cli.RunCLI


@pytest.fixture(scope="session")
def trained(tmp_path_factory, policy) -> Trained:
    """Four steps, validated at steps 0, 2 and 4."""
    workplace = Workplace(tmp_path_factory.mktemp("trained"), policy)
    flags = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", workplace.with_dev()]
    return Trained(workplace, cli.run(workplace.command("fit", *flags)))


@dataclass(frozen=True)
class Ended:
    """How a process would have ended: its exit code and what stands on stderr."""

    code: int
    stderr: str

    @property
    def error(self) -> str:
        """The message, without the prefix; there is exactly one, and no traceback."""
        assert self.stderr.count("error: ") == 1 and "Traceback" not in self.stderr, self.stderr[-3000:]
        return self.stderr.partition("error: ")[2]


@pytest.fixture
def door(monkeypatch, capsys) -> Callable[[list[str]], Ended]:
    """`python main.py …` in this process."""

    def enter(args: list[str]) -> Ended:
        monkeypatch.setattr(sys, "argv", ["main.py", *args])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, capsys.readouterr().err)

    return enter


@pytest.fixture
def parsed(monkeypatch) -> Iterator[Callable[[list[str]], object]]:
    """What a command line means: its configuration, with nothing made or run."""
    monkeypatch.setattr(cli.RunCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli.RunCLI, "_run_subcommand", lambda self, subcommand: None)
    return lambda args: cli.run(args).config[args[0]]
