"""DirtyPrompts: a pool of which half is bad in several ways, and of which an oracle knows which half."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.corruption import KINDS, Corruption
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.prompts.worlds.writers import asked, written
from saerl_lightning.ranges import CountFrom2, Seed, Share, require_in_range
from saerl_lightning.records import Prompt

GARBLED = 0.4  # chance of each letter and digit of a garbled text
GAP = 2  # characters by which the two prompts of a pair may differ in length
WRONG = "wrong_answer"


def garbled(text: str, rng: np.random.Generator) -> str:
    """Replaces two letters or digits of five by others, as a bad scan does: "sold 48 clips" becomes "sord 43 cwips"."""
    hit = rng.random(len(text)) < GARBLED
    return "".join(_another(sign, rng) if bad else sign for sign, bad in zip(text, hit.tolist(), strict=True))


def _another(sign: str, rng: np.random.Generator) -> str:
    """Returns another digit for a digit, another letter of the same case for a letter, and any other sign as it is."""
    for signs in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if sign in signs:
            return signs[(signs.index(sign) + int(rng.integers(1, len(signs)))) % len(signs)]
    return sign


DAMAGES: dict[str, Corruption] = {
    **{name: KINDS[name] for name in ("number_removed", "sentence_dropped", "quantity_contradicted")},
    "garbled": garbled,
}


class DirtyPrompts(PromptSource):
    """Prompts of another source, half of them bad. Label `quality`: 1 good, 0 bad; column `dirt`: what is wrong.

    Bad prompts have a damaged text (a number removed, a sentence dropped, a quantity contradicted, letters and digits
    garbled), with the answer of the whole text; or a whole text with the answer of another prompt of its topic. Wrong
    answers come from a careless writer, whose habits of wording differ a little from those of the others. Each bad prompt
    has a good one of its topic and of its length (up to 2 characters) beside it, so that neither topic nor length tells
    them apart.

    Everything here is ours: a world in which a filter can earn something, for the gate of a study.

    Args:
        source: Path, name on the hub, or prompt source of good prompts. It needs more than `size`, for pairs to be found:
            half as many more are mostly enough.
        size: Number of prompts, half of them bad; of an odd number one fewer.
        wrong: Share of the bad prompts whose answer is wrong, in [0, 1]; the damages share the others evenly, as far as
            they change a text.
        careless: Chance of each of a careless writer's habits in prompts with a wrong answer; all other prompts have them
            with one minus this chance. At one half no wording tells of wrong answers.
        seed: Seed of all that is drawn.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(
        self, source: str | PromptSource, size: CountFrom2, wrong: Share = 0.5, careless: Share = 0.7, seed: Seed = 0
    ) -> None:
        self.source = source
        self.size = size
        self.wrong = wrong
        self.careless = careless
        self.seed = seed
        require_in_range(self)

    def load(self) -> list[Prompt]:
        """Reads the source, spoils half of it, and returns pairs of equal topic and length in a random order.

        Raises:
            InputError: if the source gives too few pairs.
        """
        rng = np.random.default_rng(self.seed)
        whole = open_prompts(self.source).load()
        order = rng.permutation(len(whole)).tolist()
        half = (len(whole) + 1) // 2
        bad = self._spoilt([whole[row] for row in order[:half]], whole, rng)
        good = [self._labelled(whole[row], "", 1.0, rng) for row in order[half:]]
        pairs = matched(bad, good)
        wanted = self.size // 2
        if len(pairs) < wanted:
            raise InputError(
                f"DirtyPrompts.size is {self.size}, but the {len(whole)} prompts of its source give {len(pairs)} pairs of a "
                f"good and a bad prompt of equal topic and length; write a size up to {2 * len(pairs)}, or a larger source"
            )
        chosen = [prompt for place in rng.permutation(len(pairs))[:wanted].tolist() for prompt in pairs[place]]
        return [chosen[place] for place in rng.permutation(len(chosen)).tolist()]

    def _spoilt(self, prompts: Sequence[Prompt], whole: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
        """Spoils every prompt in some way; prompts whose way can't be applied are left out."""
        answers: dict[str | None, list[str]] = defaultdict(list)
        for prompt in whole:
            answers[prompt.topic].append(prompt.answer)
        spoilt = (
            self._misanswered(prompt, answers[prompt.topic], rng)
            if rng.random() < self.wrong
            else self._damaged(prompt, rng)
            for prompt in prompts
        )
        return [prompt for prompt in spoilt if prompt is not None]

    def _misanswered(self, prompt: Prompt, answers: Sequence[str], rng: np.random.Generator) -> Prompt | None:
        """Gives a prompt another answer of its topic; None if all are equal."""
        other = [answer for answer in {*answers} if answer != prompt.answer]
        if not other:
            return None
        answer = sorted(other)[int(rng.integers(len(other)))]
        return self._labelled(replace(prompt, answer=answer), WRONG, 0.0, rng)

    def _damaged(self, prompt: Prompt, rng: np.random.Generator) -> Prompt | None:
        """Damages a prompt's text in the first way of a random order that changes it; None if none does."""
        for place in rng.permutation(len(DAMAGES)).tolist():
            name, damage = list(DAMAGES.items())[place]
            changed = asked(prompt, lambda text, damage=damage: damage(text, rng))
            if changed.normalised_text not in ("", prompt.normalised_text):
                return self._labelled(changed, name, 0.0, rng)
        return None

    def _labelled(self, prompt: Prompt, dirt: str, quality: float, rng: np.random.Generator) -> Prompt:
        """Writes a prompt, and notes the truth of it where no signal reads."""
        careless = self.careless if dirt == WRONG else 1 - self.careless
        styled = asked(prompt, lambda text: written(text, careless, rng))
        columns = {**prompt.columns, "dirt": dirt}
        return replace(styled, labels={"quality": quality}, columns=columns)


def matched(bad: Sequence[Prompt], good: Sequence[Prompt], gap: int = GAP) -> list[tuple[Prompt, Prompt]]:
    """Pairs prompts of equal topic whose lengths differ little, as many as there can be; each is in one pair at most.

    Args:
        bad: Prompts of one side.
        good: Prompts of the other side.
        gap: Largest difference of a pair's lengths, in characters.
    """
    sides = [_by_topic(bad), _by_topic(good)]
    pairs = []
    for topic in sorted({*sides[0]} & {*sides[1]}, key=str):
        left, right = (side[topic] for side in sides)
        # Both from the shortest: whoever is too short for the other's first can match none of the others either.
        i = j = 0
        while i < len(left) and j < len(right):
            apart = len(left[i].text) - len(right[j].text)
            if abs(apart) <= gap:
                pairs.append((left[i], right[j]))
            i += apart <= gap
            j += apart >= -gap
    return pairs


def _by_topic(prompts: Sequence[Prompt]) -> dict[str | None, list[Prompt]]:
    """Prompts of each topic, the shortest first."""
    found: dict[str | None, list[Prompt]] = defaultdict(list)
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.text)):
        found[prompt.topic].append(prompt)
    return found
