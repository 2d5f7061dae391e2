"""The work that both sides of the step benchmark do: the same policy folder, the same prompts, the same reward.

Completions have a fixed length because neither side can end one: the policy folder's end-of-text token has an id behind
the model's last logit, so no sampler ever draws it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saerl_lightning.records import Prompt

ROOT = Path(__file__).resolve().parent.parent
PROMPTS_A_STEP = {"tiny": 4, "smollm2": 2}
PROMPT_LENGTHS = {"tiny": (64, 128, 256), "smollm2": (128,)}
SMOLLM2 = ROOT / "models/smollm2-135m"
UNREACHABLE = "<|unreachable|>"
TASKS = ("basic_arithmetic", "chain_sum")
CORPUS = (*TASKS, "gsm_symbolic", "leg_counting", "number_sorting", "syllogism", "word_sorting", "family_relationships")
FILLER = "Read the task with care, work step by step, keep track of signs, and give the final number only."


@dataclass(frozen=True)
class Workload:
    """One row of the table: what a step is made of."""

    model: str
    prompt_tokens: int
    steps: int  # counted steps; one more, the first, warms up
    group_size: int = 8
    completion_tokens: int = 64

    @property
    def prompts(self) -> int:
        """Prompts a step."""
        return PROMPTS_A_STEP[self.model]

    @property
    def planned_steps(self) -> int:
        """Steps a side is told to train: warm-up, the counted ones, and one that begins so that the last one ends."""
        return self.steps + 2


def text_reward(text: str) -> float:
    """A number in [0, 1) that depends on every character, so that each group has a best completion, even of noise."""
    return zlib.crc32(text.encode()) % 1000 / 1000


def build_policy(model: str, folder: Path) -> Path:
    """Makes the policy folder that both sides load: a named model that can't end a completion."""
    if model == "smollm2":
        if not SMOLLM2.is_dir():
            raise SystemExit(f"{SMOLLM2} is missing; run `make smollm2`")
        return endless(SMOLLM2, folder / model)
    from saerl_lightning.policy.tiny import build_tiny_policy

    corpus = (f"{prompt.text} {prompt.answer}" for prompt in procedural_prompts(CORPUS, size=2000, seed=1))
    source = build_tiny_policy(str(folder / "tiny-source"), corpus, hidden_size=128, layers=4, vocab_size=2048)
    return endless(source, folder / model)


def endless(source: Path, folder: Path) -> Path:
    """Links a policy's weights into a new folder whose end-of-text token lies behind the vocabulary."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer, config = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source)
    tokenizer.add_special_tokens({"eos_token": UNREACHABLE})
    end = tokenizer.eos_token_id
    if end < config.vocab_size:
        raise SystemExit(f"{source}: token {end} has a logit, so completions would end by chance")
    for part in (tokenizer, config, GenerationConfig(eos_token_id=end, pad_token_id=config.pad_token_id)):
        part.save_pretrained(folder)
    (folder / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    return folder


def write_prompts(file: Path, policy: Path, data: str | None, work: Workload) -> Path:
    """Writes the run's prompts as JSON lines, each padded to about `prompt_tokens` with the chat template.

    Args:
        file: where they go.
        policy: folder whose tokenizer counts.
        data: JSON lines to take questions from, null for reasoning-gym; longer ones than asked for are left out.
        work: how many prompts, and how long.
    """
    from transformers import AutoTokenizer

    tokenizer, wanted = AutoTokenizer.from_pretrained(policy), work.prompts * work.planned_steps
    questions = file_prompts(data) if data else procedural_prompts(TASKS, size=4 * wanted, seed=0)
    fitting = (p for p in questions if count_tokens(tokenizer, p.text) <= work.prompt_tokens)
    chosen = list(islice(fitting, wanted))
    if len(chosen) < wanted:
        raise SystemExit(f"only {len(chosen)} of {wanted} prompts have {work.prompt_tokens} tokens or fewer; raise it")
    with file.open("w") as lines:
        for prompt in chosen:
            padded = pad(tokenizer, prompt.text, work.prompt_tokens)
            lines.write(json.dumps({"id": prompt.uid, "prompt": padded, "answer": prompt.answer}) + "\n")
    return file


def procedural_prompts(tasks: Iterable[str], size: int, seed: int) -> list[Prompt]:
    """Reasoning-gym questions, the same ones each time."""
    from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts

    return ReasoningGymPrompts(dict.fromkeys(tasks, 1.0), size, seed).load()


def file_prompts(path: str) -> list[Prompt]:
    """Questions of a JSON-lines file."""
    from saerl_lightning.prompts.file import FilePrompts

    return FilePrompts(path).load()


def pad(tokenizer: PreTrainedTokenizerBase, question: str, length: int) -> str:
    """Puts as many words in front of a question as fit into `length` tokens."""
    best = question
    for longer in _with_filler(question):
        if count_tokens(tokenizer, longer) > length:
            return best
        best = longer
    raise AssertionError("the filler never ends")


def _with_filler(question: str) -> Iterator[str]:
    words: list[str] = []
    for word in cycle(FILLER.split()):
        words.append(word)
        yield " ".join(words) + "\n" + question


def count_tokens(tokenizer: PreTrainedTokenizerBase, question: str) -> int:
    """Tokens of a question with the chat template."""
    chat = [{"role": "user", "content": question}]
    encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return len(encoded["input_ids"])  # type: ignore[index]
