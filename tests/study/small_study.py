"""A study of two arms, and an executor that trains in no time."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from saerl_lightning.study.processes import Executor
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.study import run_study

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DEMO = [str(CONFIGS / "demo/tasks.yaml"), str(CONFIGS / "demo/grpo.yaml")]
STUDY = {
    "name": "small",
    "base": DEMO,
    "arms": {
        "grpo": {"description": "vanilla"},
        "warm": {"flags": ["--model.sampling.temperature=1.2"], "description": "warmer"},
    },
    "seeds": [0, 1],
    "budget": {"steps": 46},
    "baseline": "grpo",
    "primary": ["warm"],
}


def spec_file(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**STUDY, **changes}.items() if value is not None}))
    return path


def study(folder: Path, **changes: object) -> StudySpec:
    return StudySpec.read(spec_file(folder, **changes))


def log_steps(folder: Path, steps: int, version: int = 0, start: int = 0, validated: bool = True) -> None:
    """What a run leaves behind: a row a step, the checkpoint, and a last validation."""
    log = folder / "csv" / f"version_{version}"
    log.mkdir(parents=True)
    rows = ["step,loss,time/generate,time/forward,throughput/sampled_tokens_per_s,val/macro/avg@k"]
    rows += ["0,,,,,0.25"] if start == 0 else []
    rows += [f"{step},1.0,0.5,0.25,200,," for step in range(start, steps)]
    rows += [f"{steps - 1},,,,,0.5"] if validated else []
    (log / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/last.ckpt").touch()


@dataclass
class FakeExecutor(Executor):
    """Trains in no time; `fails` says which runs do not, `during` is called in each."""

    fails: tuple[str, ...] = ()
    steps: int = 46
    ran: list[str] = field(default_factory=list)
    during: object = None

    def check(self, jobs: int) -> None: ...

    def run(self, command, environment, log) -> int:
        folder = log.parent
        self.ran.append(environment["WANDB_NAME"])
        if self.during is not None:
            self.during(folder)
        with log.open("a") as file:
            file.write("step 1\rstep 2\nOutOfMemory: 3 GB\n")
        if environment["WANDB_NAME"] in self.fails:
            return 1
        if not (folder / "checkpoints/last.ckpt").exists():
            log_steps(folder, self.steps)
        return 0

    def stop(self) -> None: ...


def run(tmp_path: Path, executor: Executor, jobs: int = 1, **changes: object) -> int:
    path = spec_file(tmp_path, **changes)
    return run_study(StudySpec.read(path), path, tmp_path / "out", jobs, executor)
