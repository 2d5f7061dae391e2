"""Questions whose difficulty can be set and measured: sums and differences that a small model gets right now and then.

A model that answers word problems never has no difficulty to move; here it is known from what the sum is made of and
measured by asking. Nothing here asks. Pure.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

from saerl_lightning.errors import InputError

FIRST_INTEGER = re.compile(r" *(-?\d+)(?!\d|[.,]\d)")  # 14 and "14.", but not 14.5 or 14,000


@dataclass(frozen=True)
class Question:
    """What a model is asked, and how its answer begins.

    Args:
        text: the user's words.
        opening: first words of the answer, as in "7 + 7 ="; the model goes on from there.
        answer: the right number.
    """

    text: str
    opening: str
    answer: int


@dataclass(frozen=True)
class Sum:
    """Numbers added up and taken away.

    Args:
        numbers: two or more.
        signs: +1 or -1 before every number but the first.

    Raises:
        InputError: if the signs don't fit the numbers.
    """

    numbers: tuple[int, ...]
    signs: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses signs that don't fit."""
        if len(self.signs) != len(self.numbers) - 1 or set(self.signs) - {1, -1}:
            raise InputError(f"signs {self.signs} of the numbers {self.numbers}; write 1 or -1 for all but the first")

    @property
    def expression(self) -> str:
        """The sum as it is written, "7 + 7 - 2"."""
        rest = zip(self.signs, self.numbers[1:], strict=True)
        return " ".join([str(self.numbers[0]), *(f"{'+' if sign > 0 else '-'} {number}" for sign, number in rest)])

    @property
    def answer(self) -> int:
        """What it comes to."""
        return self.numbers[0] + sum(s * n for s, n in zip(self.signs, self.numbers[1:], strict=True))

    def question(self, wording: str = "What is {}?") -> Question:
        """Asks for it in plain words, with the sum in place of the braces."""
        return Question(wording.format(self.expression), f"{self.expression} =", self.answer)


def draw(count: int, terms: int, digits: int, seed: int) -> list[Sum]:
    """Draws sums whose answer is not negative; all different where there are as many.

    Args:
        count: sums wanted.
        terms: numbers of each, 2 or more.
        digits: of each number, 1 or more; no number begins with 0.
        seed: of the draw; other terms or digits give another draw.

    Raises:
        InputError: if a number is out of range.
    """
    for name, value, least in (("count", count, 0), ("terms", terms, 2), ("digits", digits, 1)):
        if value < least:
            raise InputError(f"sums: {name} is {value}; write {least} or more")
    lowest, numbers = 10 ** (digits - 1), 9 * 10 ** (digits - 1)
    space = numbers**terms * 2 ** (terms - 1)
    # At least half of all sums are not negative, so that four times as many are enough.
    drawn = random.Random(f"{seed} {terms} {digits}").sample(range(space), min(space, 4 * count + 64))
    kept = [each for each in (_numbered(i, terms, lowest, numbers) for i in drawn) if each.answer >= 0]
    return list(islice(cycle(kept), count))


def other_numbers(each: Sum, seed: int) -> Sum:
    """Another sum with the same signs and as many digits: as hard, but for the luck of the numbers."""
    return _first(
        each,
        seed,
        lambda rng: Sum(tuple(rng.randrange(_tens(n), 10 * _tens(n)) for n in each.numbers), each.signs),
    )


def bigger_numbers(each: Sum, seed: int) -> Sum:
    """The sum with one more digit in front of every number."""
    return _first(
        each, seed, lambda rng: Sum(tuple(n + 10 * _tens(n) * rng.randint(1, 9) for n in each.numbers), each.signs)
    )


def one_more_term(each: Sum, seed: int) -> Sum:
    """The sum with one more number added or taken away, of as many digits as the last."""
    tens = _tens(each.numbers[-1])
    return _first(
        each,
        seed,
        lambda rng: Sum((*each.numbers, rng.randrange(tens, 10 * tens)), (*each.signs, rng.choice((1, -1)))),
    )


def is_right(question: Question, completion: str) -> bool:
    """Whether a completion of the opening begins with the right number, spaces aside; a decimal is another number."""
    found = FIRST_INTEGER.match(completion)
    return found is not None and int(found[1]) == question.answer


def _tens(number: int) -> int:
    return 10 ** (len(str(number)) - 1)


def _first(base: Sum, seed: int, make: Callable[[random.Random], Sum]) -> Sum:
    """The first draw that is another sum and not negative."""
    rng = random.Random(f"{seed} {base.expression}")
    while (made := make(rng)) == base or made.answer < 0:
        pass
    return made


def _numbered(index: int, terms: int, lowest: int, numbers: int) -> Sum:
    """The sum of a number: its digits in base `numbers`, then its signs in base 2."""
    values, signs = [], []
    for _ in range(terms):
        index, place = divmod(index, numbers)
        values.append(lowest + place)
    for _ in range(terms - 1):
        index, place = divmod(index, 2)
        signs.append(1 if place else -1)
    return Sum(tuple(values), tuple(signs))
