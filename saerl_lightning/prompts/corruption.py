"""Corrupted copies of prompts, from which a quality probe learns if no quality labels exist.

Each corruption is a pure function of a text and a random generator, and returns the text unchanged if it can't be
applied. The corruptions don't understand the text, so some corrupted copies can still be solved. They are not from the
paper.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from saerl_lightning.prompts.source import ProbeReference
from saerl_lightning.ranges import CountFrom2, Seed, require_in_range
from saerl_lightning.records import Prompt

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
REMOVED = re.compile(rf" ?\\?\$?(?:{NUMBER.pattern})(?:\\?%)?|{NUMBER.pattern}")  # with a currency or per cent sign
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SHORTEST_SENTENCE = 3  # words; a shorter part, such as "Mr." or "i.e.", is not a sentence

Corruption = Callable[[str, np.random.Generator], str]


def number_removed(text: str, rng: np.random.Generator) -> str:
    """Removes one number: "sold 48 clips" becomes "sold clips"."""
    found = list(REMOVED.finditer(text))
    if not found:
        return text
    gone = found[int(rng.integers(len(found)))]
    return (text[: gone.start()] + text[gone.end() :]).strip()


def sentence_dropped(text: str, rng: np.random.Generator) -> str:
    """Removes one sentence, but never the last, which asks the question."""
    parts = sentences(text)
    if len(parts) < 2:
        return text
    gone = int(rng.integers(len(parts) - 1))
    return "".join(parts[:gone] + parts[gone + 1 :]).strip()


def quantity_contradicted(text: str, rng: np.random.Generator) -> str:
    """Repeats a sentence with another number: "He has 3 cats. He has 5 cats. How many ...?".

    The last sentence is repeated only if no other sentence has a number.
    """
    parts = sentences(text)
    counted = [i for i, part in enumerate(parts) if NUMBER.search(part)]
    stated = [i for i in counted if i < len(parts) - 1] or counted
    if not stated:
        return text
    repeated = stated[int(rng.integers(len(stated)))]
    found = list(NUMBER.finditer(parts[repeated]))
    old = found[int(rng.integers(len(found)))]
    again = parts[repeated][: old.start()] + another_number(old[0], rng) + parts[repeated][old.end() :]
    return "".join([*parts[:repeated], parts[repeated].rstrip(), " ", again, *parts[repeated + 1 :]])


def question_cut(text: str, rng: np.random.Generator) -> str:
    """Cuts the last sentence after a quarter to three quarters of its words, but after at least one word."""
    parts = sentences(text)
    words = list(re.finditer(r"\S+", parts[-1])) if parts else []
    if len(words) < 2:
        return text
    kept = min(max(1, round(len(words) * rng.uniform(0.25, 0.75))), len(words) - 1)
    return "".join(parts[:-1]) + parts[-1][: words[kept - 1].end()]


KINDS: dict[str, Corruption] = {
    each.__name__: each for each in (number_removed, sentence_dropped, quantity_contradicted, question_cut)
}


def sentences(text: str) -> list[str]:
    """Splits a text after each sentence. The joined sentences are the text again."""
    parts, start = [], 0
    for end in [*(found.end() for found in SENTENCE_END.finditer(text)), len(text)]:
        if len(text[start:end].split()) >= SHORTEST_SENTENCE:
            parts.append(text[start:end])
            start = end
    if start < len(text):
        parts[-1:] = ["".join([*parts[-1:], text[start:]])]
    return parts


def another_number(number: str, rng: np.random.Generator) -> str:
    """Returns a different number with as many decimals, from 1 more to twice as much plus 2."""
    digits = number.replace(",", "")
    decimals = len(digits.partition(".")[2])
    unit = int(digits.replace(".", ""))  # 2.50 becomes 250 hundredths
    other = str(unit + int(rng.integers(1, min(unit, 10**6) + 3))).zfill(decimals + 1)
    return f"{other[:-decimals]}.{other[-decimals:]}" if decimals else other


class CorruptedCopies(ProbeReference):
    """Copies a sample of the pool and corrupts every second copy. Labels: `quality` 1 (intact) or 0 (corrupted).

    A random corruption is applied to each prompt: number removed, sentence dropped, contradictory quantity inserted, or
    question cut. If it can't be applied, the next kind is tried; prompts that no kind changes are left out. Of several
    messages, the user's last one is corrupted. The source of a copy names the kind, as `corrupted:number_removed`, or
    is `intact`.

    Args:
        samples: Number of prompts to copy; all, if the pool has fewer.
        seed: Seed of the sample and of the corruptions.

    Raises:
        InputError: if `samples` is below 2.
    """

    def __init__(self, samples: CountFrom2 = 1000, seed: Seed = 0) -> None:
        self.samples = samples
        self.seed = seed
        require_in_range(self)

    def prompts(self, pool: Sequence[Prompt]) -> list[Prompt]:
        """Draws the sample, and returns its copies without labels of the pool."""
        sample = np.random.default_rng(self.seed).permutation(len(pool))[: self.samples]
        copies = [
            corrupted_copy(pool[i], self.seed) if place % 2 else _copy(pool[i], pool[i].messages, "intact", 1.0)
            for place, i in enumerate(sample)
        ]
        return [copy for copy in copies if copy is not None]


def corrupted_copy(prompt: Prompt, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> Prompt | None:
    """Corrupts the user's last message by one of the kinds, chosen by seed and uid.

    Returns:
        The copy, with `quality` 0 as its only label; None if no kind changes the text.
    """
    places = [i for i, message in enumerate(prompt.messages) if message["role"] == "user"]
    if not places:
        return None
    message = prompt.messages[places[-1]]
    # Seeded by the uid, so that a prompt is corrupted in the same way in every pool.
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{prompt.uid}".encode()).digest()))
    first = int(rng.integers(len(kinds)))
    for kind in [*kinds[first:], *kinds[:first]]:
        text = KINDS[kind](message["content"], rng)
        if text.split() and text.split() != message["content"].split():
            changed = {**message, "content": text}
            messages = (*prompt.messages[: places[-1]], changed, *prompt.messages[places[-1] + 1 :])
            return _copy(prompt, messages, f"corrupted:{kind}", 0.0)
    return None


def _copy(prompt: Prompt, messages: tuple, source: str, quality: float) -> Prompt:
    uid = f"{prompt.uid}#{source.partition(':')[0]}"
    copied_from = prompt.copied_from or prompt.uid
    return replace(
        prompt, uid=uid, messages=messages, source=source, labels={"quality": quality}, copied_from=copied_from
    )
