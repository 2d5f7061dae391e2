"""Bad input at the one door: exit code 2, one message that teaches the fix, nothing half-written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.assets.tiny import build_tiny_policy

ROOT = Path(__file__).parents[2]


def rows(count: int) -> list[dict]:
    return [{"id": f"q{i}", "prompt": f"what is {i}?", "answer": str(i)} for i in range(count)]


def lines(*records: object) -> str:
    return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records)


def copy_without(policy: Path, to: Path, *files: str) -> Path:
    return Path(shutil.copytree(policy, to, ignore=shutil.ignore_patterns(*files)))


@dataclass(frozen=True)
class Bad:
    """A mistake: what it does to the workplace, the flags it returns, and words of the message."""

    make: Callable
    says: str


def prompts(text: str) -> Callable:
    def make(workplace) -> list[str]:
        workplace.train.write_text(text)
        return []

    return make


def flags(*given: str) -> Callable:
    return lambda workplace: [flag.format(folder=workplace.folder) for flag in given]


def policy_without(*files: str) -> Callable:
    def make(workplace) -> list[str]:
        return [f"--model.policy.path={copy_without(workplace.policy, workplace.folder / 'maimed', *files)}"]

    return make


MISTAKES = {
    "prompts missing": Bad(flags("--data.train={folder}/nowhere.jsonl"), "nowhere.jsonl does not exist"),
    "prompts empty": Bad(prompts(""), "is empty"),
    "prompts of another kind": Bad(flags("--data.train={folder}/train.csv"), "does not exist"),
    "broken line": Bad(prompts(lines(*rows(3), '{"prompt": "what')), "train.jsonl:4: broken JSON"),
    "no answer": Bad(prompts(lines(*rows(3), {"id": "q9", "prompt": "what?"})), "train.jsonl:4: no answer"),
    "duplicate ids": Bad(prompts(lines(*rows(3), rows(2)[1])), "id 'q1' stands at train.jsonl:2 and at train.jsonl:4"),
    "all prompts too long": Bad(flags("--data.chat.max_prompt_tokens=4"), "no prompt is left of 12"),
    "too few prompts": Bad(flags("--data.batch_size=13"), "data.batch_size is 13, but only 12"),
    "validation prompts missing": Bad(flags('--data.val={{"dev": "{folder}/nowhere.jsonl"}}'), "does not exist"),
    "policy missing": Bad(flags("--model.policy.path={folder}/nowhere"), "is no folder"),
    "policy without a model": Bad(policy_without("config.json"), "has no config.json"),
    "policy without weights": Bad(policy_without("*.safetensors"), "no model could be loaded"),
    "policy without tokenizer": Bad(policy_without("tokenizer*"), "no tokenizer"),
    "policy without chat template": Bad(policy_without("chat_template*"), "no chat template"),
    "group of one": Bad(flags("--model.sampling.group_size=1"), "sampling.group_size is 1"),
    "group of none": Bad(flags("--model.sampling.group_size=0"), "Sampling.group_size is 0"),
    "greedy groups": Bad(flags("--model.sampling.temperature=0"), "greedy groups are copies"),
    "completions beyond the context": Bad(
        flags("--model.sampling.max_tokens=2000"), "beyond the policy's context of 2048"
    ),
    "evaluation beyond the context": Bad(
        flags('--data.val={{"dev": "{folder}/dev.jsonl"}}', "--data.val_sampling.max_tokens=2000"),
        "longest sampling's max_tokens 2000",
    ),
    "what Lightning refuses": Bad(flags("--trainer.enable_progress_bar=false"), "found `PhaseProgressBar`"),
    "row beyond the micro-batch": Bad(flags("--model.micro_tokens=71"), "write 72 or more"),
    "top_p with correction": Bad(
        flags("--model.sampling.top_p=0.9", "--model.guard=null"), "would be biased by the kept mass"
    ),
    "top_k with the guard": Bad(
        flags("--model.sampling.top_k=5", "--model.objective.correction=null"), "the guard would see a mismatch"
    ),
    "no reward": Bad(flags("--model.rewards=[]"), "no weight between them"),
    "judge that is not there": Bad(
        flags(
            '--model.rewards=[{{"class_path": "JudgeReward", "init_args": {{"url": "http://127.0.0.1:9", "model": "m"}}}}]'
        ),
        "can't be reached: ConnectionRefusedError",
    ),
    "mixing beyond one half": Bad(flags("--data.mixing=TailMixing", "--data.mixing.fraction=0.6"), "fraction is 0.6"),
    "validation set of none": Bad(
        flags('--data.val={{"dev": {{"source": "{folder}/dev.jsonl", "limit": 0}}}}'), "ValidationSet.limit is 0"
    ),
    "curriculum without its label": Bad(
        flags("--data.curriculum=LabelOrder", "--data.curriculum.label=level"), "labels present: difficulty"
    ),
    "unknown class": Bad(flags("--data.curriculum=EasyToHrad"), "'EasyToHrad' fits no class"),
    "unknown slot": Bad(flags("--data.curiculum=LengthOrder"), "'curiculum' is not accepted"),
    "unknown argument": Bad(flags("--model.engine.rows=3"), "'rows' is not accepted"),
    "clipping to less than nothing": Bad(flags("--model.max_grad_norm=-1"), "GRPOModule.max_grad_norm is -1"),
    "a norm that is no number": Bad(flags("--model.max_grad_norm=.nan"), "GRPOModule.max_grad_norm is nan"),
    "a seed below 0": Bad(flags("--data.shuffle_seed=-1"), "PromptDataModule.shuffle_seed is -1"),
    "a seed beyond": Bad(flags(f"--data.shuffle_seed={10**30}"), f"PromptDataModule.shuffle_seed is {10**30}"),
    "bfloat16 weights": Bad(flags("--model.policy.dtype=bfloat16"), "policy.dtype is bfloat16"),
    "half precision": Bad(flags("--trainer.precision=bf16-true"), "trainer.precision is bf16-true"),
    "a rate below 0": Bad(flags("--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"), "model.optimizer"),
    "checkpoint missing": Bad(flags("--ckpt_path={folder}/nowhere.ckpt"), "no checkpoint at"),
}


@pytest.mark.parametrize("bad", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_in_one_message_and_leaves_nothing(workplace, door, bad):
    more = bad.make(workplace)
    before = set(workplace.folder.rglob("*"))
    ended = door(workplace.command("fit", *more))
    assert ended.code == 2
    assert bad.says in " ".join(ended.error.split())
    assert set(workplace.folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["prompts missing", pytest.param("unknown slot", marks=pytest.mark.slow)])
def test_the_process_itself_exits_with_2_and_no_traceback(workplace, name):
    bad = MISTAKES[name]
    command = [sys.executable, str(ROOT / "main.py"), *workplace.command("fit", *bad.make(workplace))]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=workplace.folder)
    assert ended.returncode == 2
    assert bad.says in ended.stderr and "Traceback" not in ended.stderr
    # Nothing follows: triton's report of leaks, for one, hid the line.
    assert ended.stderr.partition("error: ")[2].count("\n") == 1, ended.stderr
    assert not workplace.run_dir.exists()


def test_reading_a_command_line_imports_no_engine(workplace):
    """The baseline names VLLMEngine; whoever swaps it must not wait for vllm."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(ROOT / "main.py"),
        *workplace.command("fit", "--data.batch_size=0"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and "PromptDataModule.batch_size is 0" in ended.stderr
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", ended.stderr, re.MULTILINE))
    assert "lightning" in imported
    assert not imported & {"vllm", "sae_lens", "transformers.modeling_utils", "sklearn.linear_model"}


def test_vllm_that_is_not_installed_is_refused(workplace, door, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    ended = door(workplace.command("fit", "--model.engine=VLLMEngine"))
    assert ended.code == 2 and "vllm, which is not installed" in ended.error
    assert not workplace.run_dir.exists()


# -- prompts that can't all be used ------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_is_dropped_with_its_reason(workplace, door):
    from saerl_lightning import cli

    workplace.train.write_text(lines(*rows(5), {"id": "long", "prompt": "why? " * 90, "answer": "1"}))
    run = cli.run(workplace.command("fit", "--trainer.max_steps=1"))
    ledger = run.datamodule.plan.ledger()
    assert ledger["fate"][5] == "dropped"
    assert ledger["reason"][5].endswith("longer than max_prompt_tokens 64")
    assert list(ledger["fate"][:5]).count("dropped") == 0


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_questions_that_are_trained_on_are_dropped_with_the_count(workplace, verb):
    """Texts that differ in case and spacing are one question."""
    twins = [{**row, "id": f"twin-{i}", "prompt": f" {row['prompt'].upper()}\n"} for i, row in enumerate(rows(3))]
    workplace.train.write_text(lines(*rows(6)))
    workplace.dev.write_text(lines(*twins, {"id": "other", "prompt": "and this?", "answer": "1"}))
    with pytest.warns(UserWarning, match="'dev': 3 of its 4 questions stand in data.train too, and are dropped"):
        made = cli.run(workplace.command(verb, "--trainer.max_steps=1", workplace.with_dev()))
    asked = [prompt.uid for loader in made.datamodule.val_dataloader() for batch in loader for prompt in batch.prompts]
    assert asked == ["other"]


def test_a_set_of_trained_questions_alone_is_refused_unless_it_says_so(workplace, door):
    workplace.train.write_text(lines(*rows(6)))
    command = workplace.command("fit", "--trainer.max_steps=1")
    with pytest.warns(UserWarning, match="6 of its 6"):
        ended = door([*command, "--data.val=" + json.dumps({"dev": str(workplace.train)})])
    assert ended.code == 2 and "'dev' has no question that is not trained on" in ended.error
    kept = {"dev": {"source": str(workplace.train), "keep_trained": True}}
    made = cli.run([*command, "--data.val=" + json.dumps(kept)])
    assert (
        len([prompt for loader in made.datamodule.val_dataloader() for batch in loader for prompt in batch.prompts])
        == 6
    )


# -- run folders -------------------------------------------------------------------------------------------------------


def test_a_run_is_written_over_only_when_asked_to(workplace, door):
    once = workplace.command("fit", "--trainer.max_steps=1")
    assert door(once).code == 0
    (workplace.run_dir / "notes.txt").write_text("precious")
    weights = workplace.last.read_bytes()
    refused = door(once)
    assert refused.code == 2 and f"run folder '{workplace.run_dir}' exists" in refused.error
    assert (workplace.run_dir / "notes.txt").exists() and workplace.last.read_bytes() == weights
    assert door([*once, "--overwrite=true"]).code == 0
    assert workplace.last.exists() and not (workplace.run_dir / "notes.txt").exists()


@pytest.mark.parametrize("config", [None, "model: {hidden: 3}\n"], ids=["no config", "somebody else's config"])
def test_what_is_no_run_folder_is_never_deleted(workplace, door, config):
    workplace.run_dir.mkdir()
    (workplace.run_dir / "thesis.tex").write_text("years of work")
    if config:
        (workplace.run_dir / "config.yaml").write_text(config)
    ended = door(workplace.command("fit", "--overwrite=true"))
    assert ended.code == 2 and "is no run folder and is not deleted" in ended.error
    assert (workplace.run_dir / "thesis.tex").read_text() == "years of work"


def test_a_test_run_leaves_the_record_of_the_training_alone(trained, door):
    config = trained.workplace.run_dir / "config.yaml"
    before = config.read_text()
    verb = ["--ckpt_path", str(trained.workplace.last), trained.workplace.with_dev()]
    assert door(trained.workplace.command("test", *verb)).code == 0
    assert config.read_text() == before


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_is_refused(trained, workplace, door):
    wider = build_tiny_policy(str(workplace.folder / "wider"), ["0 1 2 what is"], hidden_size=128, layers=2)
    again = [f"--model.policy.path={wider}", "--ckpt_path", str(trained.workplace.last)]
    ended = door(workplace.command("fit", *again))
    assert ended.code == 2
    assert "the checkpoint is of another model" in ended.error and str(wider) in ended.error


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def foreign(file: Path) -> None:
    file.write_text("no checkpoint at all")


def stateless(file: Path) -> None:
    torch.save({"epoch": 1}, file)


DAMAGES = {truncated: "is no readable checkpoint", foreign: "is no readable checkpoint", stateless: "has no state_dict"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("use", ["export", "ckpt_path", "last"])
def test_a_damaged_checkpoint_is_refused(trained, workplace, door, damage, use):
    workplace.last.parent.mkdir(parents=True)
    shutil.copy(trained.workplace.last, workplace.last)
    damage(workplace.last)
    before = set(workplace.folder.rglob("*"))
    commands = {
        "export": ["export", str(workplace.last), str(workplace.folder / "exported")],
        "ckpt_path": workplace.command("fit", "--ckpt_path", str(workplace.last)),
        "last": workplace.command("fit", "--ckpt_path=last"),
    }
    ended = door(commands[use])
    assert ended.code == 2 and DAMAGES[damage] in ended.error
    assert set(workplace.folder.rglob("*")) == before


def test_a_full_disk_is_said_in_a_line(door, monkeypatch):
    def full(_folder):
        Path("/dev/full").write_text("x")  # refuses every byte, as a full disk does

    from saerl_lightning.study.report import gather as tool

    monkeypatch.setattr(tool, "write_report", full)
    ended = door(["study", "report", "anywhere"])
    assert ended.code == 2 and "the disk is full; free some of it" in ended.error

    def broken(_folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "there")

    monkeypatch.setattr(tool, "write_report", broken)
    with pytest.raises(OSError, match="Input/output error"):  # other troubles are not taken for one
        door(["study", "report", "nowhere"])
