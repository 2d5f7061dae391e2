"""TRL's arguments where most users have them: in a script, which is never run, and in the command that starts one."""

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.migration.conversion import convert
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.trl_reading import trl_arguments

SCRIPT = """
import torch, trl
from pathlib import Path
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig
from trl.rewards import accuracy_reward as right
from my_rewards import brevity

Path("was_run").touch()
MODEL = "Qwen/Qwen2-0.5B-Instruct"
RATE = 1e-6
RATE = 2e-6
rows = load_dataset("trl-lib/DeepMath-103K", "main", split="train[:1%]")
held = load_dataset("other/set", split="test")
def length(completions, **kwargs): return [len(c) for c in completions]
args = GRPOConfig(
    output_dir="out", num_generations=8, bf16=True, beta=-0.0, learning_rate=RATE, logging_steps=int("3"), **{"x": 1},
    model_init_kwargs={"dtype": "bfloat16"}, dtype=torch.bfloat16,
)
trainer = trl.GRPOTrainer(
    model=MODEL, reward_funcs=REWARDS, args=args, peft_config=LoraConfig(r=32, target_modules=("q_proj",))
)
trainer.train()
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return written


def test_a_script_is_read_and_not_run(written, tmp_path):
    values = trl_arguments(written("train.py", SCRIPT.replace("REWARDS", "[right, brevity]")))
    assert values == {
        "output_dir": "out",
        "num_generations": 8,
        "bf16": True,
        "beta": 0.0,
        "learning_rate": "$(RATE)",  # given twice
        "logging_steps": "$(int('3'))",
        "model_init_kwargs": {"dtype": "bfloat16"},
        "dtype": "bfloat16",
        "model_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
        "reward_funcs": ["accuracy_reward", "my_rewards.brevity"],
        "dataset_name": "trl-lib/DeepMath-103K",
        "dataset_config": "main",
        "dataset_train_split": "train[:1%]",
        "lora_r": 32,
        "lora_target_modules": ["q_proj"],
        "use_peft": True,
    }
    assert not (tmp_path / "was_run").exists()


def test_what_only_a_run_would_tell_is_listed_and_not_carried(written):
    draft = convert(TRL, trl_arguments(written("train.py", SCRIPT.replace("REWARDS", "length"))))
    assert "write its value in place of '$(RATE)'" in draft.lost["learning_rate"]
    assert "$(length)" in draft.lost["reward_funcs"] and "reward_funcs could not be read" in draft.other_reward


def test_the_flags_of_a_command_weigh_more_than_its_config(written):
    written("args.yaml", "num_generations: 4\nbeta: 0.04\n")
    command = (
        "export X=1\naccelerate launch --num_processes 4 train/grpo.py \\\n  --config args.yaml --num_generations 8 \\\n"
        "  --use_vllm --learning_rate=1e-5 --reward-funcs accuracy_reward think_format_reward --dataset_name a/b # --x 3\n"
    )
    assert trl_arguments(written("run.sh", command)) == {
        "num_generations": 8,
        "beta": 0.04,
        "use_vllm": True,
        "learning_rate": "1e-5",
        "reward_funcs": ["accuracy_reward", "think_format_reward"],
        "dataset_name": "a/b",
    }
    assert trl_arguments(written("cli.sh", "trl grpo --max_steps 3 && echo done")) == {"max_steps": 3}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train.py", "print(1)", r"has no GRPOConfig\(…\); give the YAML, or the .sh"),
        ("train.py", "def (", "is no Python"),
        ("run.sh", "python train.py", "has no flags behind 'trl grpo' or a script"),
        ("run.sh", "trl grpo --x 'open", "has an open quote"),
    ],
)
def test_a_file_without_arguments_is_refused(written, name, text, said):
    with pytest.raises(InputError, match=said):
        trl_arguments(written(name, text))
