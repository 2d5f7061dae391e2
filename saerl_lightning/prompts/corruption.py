"""Copies of prompts that are broken on purpose: what a quality probe learns from where nobody has rated the prompts.

Every corruption is a pure function of a text and a random generator, and returns the text unchanged where it does not apply.
None of them understands the text, so now and then a corrupted copy can still be solved; they are ours, not the paper's.
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
REMOVED = re.compile(rf" ?\\?\$?(?:{NUMBER.pattern})(?:\\?%)?|{NUMBER.pattern}")  # with its currency or per cent sign
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SHORTEST_SENTENCE = 3  # words; "Mr." and "i.e." end no sentence

Corruption = Callable[[str, np.random.Generator], str]


def number_removed(text: str, rng: np.random.Generator) -> str:
    """Takes one number out: "sold 48 clips" becomes "sold clips"."""
    found = list(REMOVED.finditer(text))
    if not found:
        return text
    gone = found[int(rng.integers(len(found)))]
    return (text[: gone.start()] + text[gone.end() :]).strip()


def sentence_dropped(text: str, rng: np.random.Generator) -> str:
    """Takes one sentence out, never the last: it asks the question."""
    parts = sentences(text)
    if len(parts) < 2:
        return text
    gone = int(rng.integers(len(parts) - 1))
    return "".join(parts[:gone] + parts[gone + 1 :]).strip()


def quantity_contradicted(text: str, rng: np.random.Generator) -> str:
    """Says a sentence again with another number in it: "He has 3 cats. He has 5 cats. How many ...?".

    The last sentence is taken only where no other has a number.
    """
    parts = sentences(text)
    counted = [i for i, part in enumerate(parts) if NUMBER.search(part)]
    stated = [i for i in counted if i < len(parts) - 1] or counted
    if not stated:
        return text
    said = stated[int(rng.integers(len(stated)))]
    found = list(NUMBER.finditer(parts[said]))
    old = found[int(rng.integers(len(found)))]
    again = parts[said][: old.start()] + another_number(old[0], rng) + parts[said][old.end() :]
    return "".join([*parts[:said], parts[said].rstrip(), " ", again, *parts[said + 1 :]])


def question_cut(text: str, rng: np.random.Generator) -> str:
    """Cuts the last sentence off between a quarter and three quarters of its words; never less than one word."""
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
    """Cuts a text behind its sentences' ends; joined together, the parts are the text again."""
    parts, start = [], 0
    for end in [*(found.end() for found in SENTENCE_END.finditer(text)), len(text)]:
        if len(text[start:end].split()) >= SHORTEST_SENTENCE:
            parts.append(text[start:end])
            start = end
    if start < len(text):
        parts[-1:] = ["".join([*parts[-1:], text[start:]])]
    return parts


def another_number(number: str, rng: np.random.Generator) -> str:
    """A different number of about the same size, with as many decimals: 1 more to twice as much and 2 more."""
    digits = number.replace(",", "")
    decimals = len(digits.partition(".")[2])
    unit = int(digits.replace(".", ""))  # 2.50 is 250 hundredths
    other = str(unit + int(rng.integers(1, min(unit, 10**6) + 3))).zfill(decimals + 1)
    return f"{other[:-decimals]}.{other[-decimals:]}" if decimals else other


class CorruptedCopies(ProbeReference):
    """Copies of a sample of the pool, every second one corrupted: labels `quality` 1 (intact) and 0 (corrupted).

    A corruption is drawn for each prompt: a number removed, a sentence dropped, a contradictory quantity inserted, or the
    question cut off mid-way. Where it can't be done the next kind is tried; a prompt that no kind can change is left
    out. Of several messages the last of the user's is corrupted. A copy's source tells what was done to it, as in
    `corrupted:number_removed`; intact ones have the source `intact`.

    Args:
        samples: prompts to copy; all, where the pool has fewer.
        seed: of the sample and of the corruptions.

    Raises:
        InputError: if `samples` is below 2.
    """

    def __init__(self, samples: CountFrom2 = 1000, seed: Seed = 0) -> None:
        self.samples = samples
        self.seed = seed
        require_in_range(self)

    def prompts(self, pool: Sequence[Prompt]) -> list[Prompt]:
        """Samples and copies."""
        drawn = np.random.default_rng(self.seed).permutation(len(pool))[: self.samples]
        copies = [
            corrupted_copy(pool[i], self.seed) if place % 2 else _copy(pool[i], pool[i].messages, "intact", 1.0)
            for place, i in enumerate(drawn)
        ]
        return [copy for copy in copies if copy is not None]


def corrupted_copy(prompt: Prompt, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> Prompt | None:
    """Corrupts the last message of the user's by one of the kinds, drawn by seed and uid.

    Returns:
        The copy, with `quality` 0 as its only label; None if no kind changes the text.
    """
    places = [i for i, message in enumerate(prompt.messages) if message["role"] == "user"]
    if not places:
        return None
    message = prompt.messages[places[-1]]
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
