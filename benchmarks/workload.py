"""The work that both sides of the step benchmark do: the same policy folder, the same prompts, the same reward.

Completions have a fixed length because neither side can end one: the policy folder's end-of-text token has an id behind
the model's last logit, so no sampler ever draws it. Groups without variance are made, not waited for: prompts whose id
begins with `FLAT` earn the same for any completion.
"""

from __future__ import annotations

import json
import math
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
PROMPT_LENGTHS = (64, 128, 256)
SMOLLM2 = ROOT / "models/smollm2-135m"
LARGE = {"half": (1024, 24), "large": (1536, 28)}  # width and layers of policies with random weights
UNREACHABLE = "<|unreachable|>"
TASKS = ("basic_arithmetic", "chain_sum")
CORPUS = (*TASKS, "gsm_symbolic", "leg_counting", "number_sorting", "syllogism", "word_sorting", "family_relationships")
FILLER = "Read the task with care, work step by step, keep track of signs, and give the final number only."


FLAT = "flat:"
FLAT_REWARD = 0.5


@dataclass(frozen=True)
class Workload:
    """What a step is made of.

    Args:
        model: which policy.
        prompts: a step.
        prompt_tokens: of the longest prompt, about.
        steps: counted ones; one more, the first, warms up.
        group_size: completions a prompt.
        completion_tokens: of every completion.
        zero_variance: share of a step's groups that earn one constant reward.
        uneven: whether every other prompt is half as long, a micro-batch holds half the step, completions come in parts
            of one prompt, and grading takes time (ours only).
    """

    model: str
    prompts: int
    prompt_tokens: int
    steps: int
    group_size: int = 8
    completion_tokens: int = 64
    zero_variance: float = 0.0
    uneven: bool = False

    @property
    def planned_steps(self) -> int:
        """Steps a side is told to train: warm-up, the counted ones, and one that begins so that the last one ends."""
        return self.steps + 2

    @property
    def sampled_tokens(self) -> int:
        """Completion tokens a step."""
        return self.prompts * self.group_size * self.completion_tokens

    @property
    def packed_tokens(self) -> int:
        """Tokens a step, each prompt counted once."""
        return self.prompts * self.prompt_tokens + self.sampled_tokens

    @property
    def micro_tokens(self) -> int:
        """Budget of a micro-batch: all rows of a step, prompts and padding included, as in TRL's one batch."""
        rows = self.prompts * self.group_size
        return rows * (self.prompt_tokens + self.completion_tokens) // (2 if self.uneven else 1)

    @property
    def flat_groups(self) -> float:
        """Share of a step's groups that `is_flat` picks."""
        return sum(is_flat(place, self.zero_variance) for place in range(self.prompts)) / self.prompts

    @property
    def title(self) -> str:
        """What is special about it, in a word or two."""
        return "uneven" if self.uneven else f"{self.flat_groups:.0%} flat" if self.zero_variance else "even"

    def length_of(self, index: int) -> int:
        """Tokens that the prompt at a place in the file is padded to."""
        return self.prompt_tokens // 2 if self.uneven and index % 2 else self.prompt_tokens

    def uid(self, index: int, uid: str) -> str:
        """Id of the prompt at a place in the file; it tells the reward whether the group is flat."""
        return f"{FLAT}{uid}" if is_flat(index % self.prompts, self.zero_variance) else uid


def is_flat(place: int, share: float) -> bool:
    """Whether the prompt at a place of its step is flat; spreads `share` of them evenly, the last of each run."""
    return math.floor((place + 1) * share) > math.floor(place * share)


def reward(uid: str, text: str) -> float:
    """The same for any completion of a flat prompt, a number made of the text for others."""
    return FLAT_REWARD if uid.startswith(FLAT) else text_reward(text)


def text_reward(text: str) -> float:
    """A number in [0, 1) that depends on every character, so that each group has a best completion, even of noise."""
    return zlib.crc32(text.encode()) % 1000 / 1000


def build_policy(model: str, folder: Path) -> Path:
    """Makes the policy folder that both sides load: a named model that can't end a completion."""
    if model == "smollm2":
        if not SMOLLM2.is_dir():
            raise SystemExit(f"{SMOLLM2} is missing; run `make smollm2`")
        return endless(SMOLLM2, folder / model)
    from saerl_lightning.assets.tiny import build_tiny_policy

    corpus = (f"{prompt.text} {prompt.answer}" for prompt in procedural_prompts(CORPUS, size=2000, seed=1))
    width, layers = LARGE.get(model, (128, 4))
    source = build_tiny_policy(str(folder / "tiny-source"), corpus, hidden_size=width, layers=layers, vocab_size=2048)
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
    """Writes the run's prompts as JSON lines, each padded to about its length with the chat template.

    Args:
        file: where they go.
        policy: folder whose tokenizer counts.
        data: JSON lines to take questions from, null for reasoning-gym; longer ones than asked for are left out.
        work: how many prompts, how long, and which are flat.
    """
    from transformers import AutoTokenizer

    tokenizer, wanted = AutoTokenizer.from_pretrained(policy), work.prompts * work.planned_steps
    questions = file_prompts(data) if data else procedural_prompts(TASKS, size=4 * wanted, seed=0)
    shortest = min(work.length_of(index) for index in range(wanted))
    fitting = (p for p in questions if count_tokens(tokenizer, p.text) <= shortest)
    chosen = list(islice(fitting, wanted))
    if len(chosen) < wanted:
        raise SystemExit(f"only {len(chosen)} of {wanted} prompts have {shortest} tokens or fewer; raise --prompt-lens")
    with file.open("w") as lines:
        for index, prompt in enumerate(chosen):
            padded = pad(tokenizer, prompt.text, work.length_of(index))
            record = {"id": work.uid(index, prompt.uid), "prompt": padded, "answer": prompt.answer}
            lines.write(json.dumps(record) + "\n")
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
