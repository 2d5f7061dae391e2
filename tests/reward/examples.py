"""An example of every shipped reward: its arguments, prompts, and for each prompt a good completion and a bad one."""

import atexit
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.prompts.verifiers_env import VerifiersEnv
from saerl_lightning.records import Prompt, Rollouts
from tests.reward.judging.chat_server import ChatHandler, JudgeServer

SMALL_SUMS = str(Path(__file__).parent / "environments" / "small_sums.py")
SUMS = {"two": "1 + 1", "five": "2 + 3", "nine": "4 + 5"}


@dataclass(frozen=True)
class Example:
    """How a reward is made, and what it grades.

    `good` gets a higher grade than `bad`, prompt by prompt; where the grade is no matter of quality, both are just texts.
    """

    prompts: list[Prompt]
    good: list[str]
    bad: list[str]
    arguments: dict[str, Any] = field(default_factory=dict)
    ordered: bool = True  # whether good texts get more


def prompts(answers: list[str]) -> list[Prompt]:
    asked = zip(SUMS, answers, strict=True)
    return [Prompt(uid, ({"role": "user", "content": f"What is {SUMS[uid]}?"},), answer) for uid, answer in asked]


def rollouts(*groups: list[str]) -> Rollouts:
    """Groups of completions, a token a word and one more."""
    texts = [text for group in groups for text in group]
    ids = [[1] * min(len(text.split()) + 1, 50) for text in texts]
    blanks = [[0.0] * len(each) for each in ids]
    return Rollouts.pack([[0, 0]] * len(groups), ids, blanks, [False] * len(texts), texts, len(groups[0]), 0)


def right(completions, answer, **columns):
    return [float(given == wanted) for given, wanted in zip(completions, answer, strict=True)]


def gym() -> Example:
    made = ReasoningGymPrompts({"chain_sum": 1.0}, 3).load()
    return Example(made, [prompt.answer for prompt in made], ["none"] * 3, {"workers": 1})


def code() -> Example:
    wanted = [json.dumps({"inputs": [""], "outputs": [each]}) for each in ("2", "5", "9")]
    right = [f"```python\nprint({each})\n```" for each in SUMS.values()]
    return Example(prompts(wanted), right, ["print(", "It is 5", ""], {"workers": 1})


@cache
def judge_server() -> JudgeServer:
    """One for all tests of a process; its threads end with it."""

    def compare(handler: ChatHandler, body: dict) -> None:
        answer, _, completion = body["messages"][-1]["content"].partition("|")
        handler.reply(f"Score: {10 * (answer == completion)}")

    return JudgeServer(compare).__enter__()


def judged() -> Example:
    arguments = {"url": judge_server().url, "model": "m", "template": "{{ answer }}|{{ completion }}", "cache": None}
    return Example(SUM_PROMPTS, ["2", "5", "9"], ["5", "9", "2"], arguments)


@cache
def reward_model() -> str:
    """A tiny reward model with random weights, in a folder that lives as long as the process."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = TemporaryDirectory(prefix="reward-model-")
    atexit.register(folder.cleanup)
    source = build_tiny_policy(f"{folder.name}/policy", ["What is 1 + 1?"], hidden_size=32, layers=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.save_pretrained(f"{folder.name}/model")
    AutoTokenizer.from_pretrained(source).save_pretrained(f"{folder.name}/model")
    return f"{folder.name}/model"


def scored() -> Example:
    arguments = {"path": reward_model(), "dtype": "float32", "batch_tokens": 1}
    return Example(SUM_PROMPTS, ["2", "5", "9"], ["5", "9", "2"], arguments, ordered=False)


def environment() -> Example:
    made = VerifiersEnv(SMALL_SUMS).load()
    return Example(made, ["so 1", "2", "3"], ["2", "no 1", ""], {"environment": SMALL_SUMS, "workers": 1})


SUM_PROMPTS = prompts(["2", "5", "9"])
EXAMPLES: dict[str, Callable[[], Example]] = {
    "AnswerReward": lambda: Example(SUM_PROMPTS, ["<answer>2</answer>", "5.", "９"], ["<answer>3</answer>", "", "8"]),
    "CodeReward": code,
    "FormatReward": lambda: Example(
        SUM_PROMPTS, ["<b>2</b>", "<b>5</b>", "<b>9</b>"], ["2", "5", "9"], {"pattern": "<b>.+</b>"}
    ),
    "FunctionReward": lambda: Example(SUM_PROMPTS, ["2", "5", "9"], ["5", "9", "2"], {"function": right, "workers": 1}),
    "JudgeReward": judged,
    "LengthReward": lambda: Example(
        SUM_PROMPTS, ["a b", "a", "a b c"], ["a " * 20] * 3, {"max_tokens": 10, "buffer": 5}
    ),
    "MathReward": lambda: Example(
        SUM_PROMPTS, ["It is 2", r"\boxed{\sqrt{25}}", "so 9"], ["It is 3", r"\boxed{\sqrt{24}}", ""], {"workers": 1}
    ),
    "ModelReward": scored,
    "RandomReward": lambda: Example(SUM_PROMPTS, ["2", "5", "9"], ["5", "9", "2"], ordered=False),
    "ReasoningGymReward": gym,
    "VerifiersReward": environment,
}
