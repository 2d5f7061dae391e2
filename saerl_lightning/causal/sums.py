"""Sums and differences as questions of known difficulty, which a small model gets right now and then. Pure functions.

A small model never solves word problems, so their measured difficulty can't vary. The difficulty of a sum depends on
its terms and digits and can be measured by asking.
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
    """A question and the beginning of its answer.

    Args:
        text: Text of the user's message.
        opening: First words of the answer, such as "7 + 7 =", which the model continues.
        answer: The right number.
    """

    text: str
    opening: str
    answer: int


@dataclass(frozen=True)
class Sum:
    """Numbers that are added and subtracted.

    Args:
        numbers: Two or more numbers.
        signs: +1 or -1 for every number except the first.

    Raises:
        InputError: if there is not one sign for each number except the first.
    """

    numbers: tuple[int, ...]
    signs: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses signs that do not fit the numbers."""
        if len(self.signs) != len(self.numbers) - 1 or set(self.signs) - {1, -1}:
            raise InputError(f"signs {self.signs} of the numbers {self.numbers}; write 1 or -1 for all but the first")

    @property
    def expression(self) -> str:
        """The sum as text, such as "7 + 7 - 2"."""
        rest = zip(self.signs, self.numbers[1:], strict=True)
        return " ".join([str(self.numbers[0]), *(f"{'+' if sign > 0 else '-'} {number}" for sign, number in rest)])

    @property
    def answer(self) -> int:
        """Result of the sum."""
        return self.numbers[0] + sum(s * n for s, n in zip(self.signs, self.numbers[1:], strict=True))

    def question(self, wording: str = "What is {}?") -> Question:
        """Makes a question of the sum, written in place of the braces."""
        return Question(wording.format(self.expression), f"{self.expression} =", self.answer)


def draw_sums(count: int, terms: int, digits: int, seed: int) -> list[Sum]:
    """Draws sums whose result is not negative; all are different if there are enough.

    Args:
        count: Number of sums.
        terms: Number of terms of each sum, 2 or more.
        digits: Number of digits of each term, 1 or more; no term begins with 0.
        seed: Seed of the random draw, which also depends on terms and digits.

    Raises:
        InputError: if a number is out of range.
    """
    for name, value, least in (("count", count, 0), ("terms", terms, 2), ("digits", digits, 1)):
        if value < least:
            raise InputError(f"sums: {name} is {value}; write {least} or more")
    lowest, numbers = 10 ** (digits - 1), 9 * 10 ** (digits - 1)
    space = numbers**terms * 2 ** (terms - 1)
    # At least half of all sums are not negative, so drawing four times as many leaves enough.
    drawn = random.Random(f"{seed} {terms} {digits}").sample(range(space), min(space, 4 * count + 64))
    kept = [each for each in (_numbered(i, terms, lowest, numbers) for i in drawn) if each.answer >= 0]
    return list(islice(cycle(kept), count))


def other_numbers(each: Sum, seed: int) -> Sum:
    """Makes a sum with the same signs and other numbers of as many digits: of about equal difficulty."""
    return _first(
        each,
        seed,
        lambda rng: Sum(tuple(rng.randrange(_tens(n), 10 * _tens(n)) for n in each.numbers), each.signs),
    )


def bigger_numbers(each: Sum, seed: int) -> Sum:
    """Makes a sum with one more digit in front of every number."""
    return _first(
        each, seed, lambda rng: Sum(tuple(n + 10 * _tens(n) * rng.randint(1, 9) for n in each.numbers), each.signs)
    )


def one_more_term(each: Sum, seed: int) -> Sum:
    """Makes a sum with one more number added or subtracted, with as many digits as the last."""
    tens = _tens(each.numbers[-1])
    return _first(
        each,
        seed,
        lambda rng: Sum((*each.numbers, rng.randrange(tens, 10 * tens)), (*each.signs, rng.choice((1, -1)))),
    )


def is_right(question: Question, completion: str) -> bool:
    """Whether a completion begins with the right number, after any spaces; a decimal number is wrong."""
    found = FIRST_INTEGER.match(completion)
    return found is not None and int(found[1]) == question.answer


def _tens(number: int) -> int:
    return 10 ** (len(str(number)) - 1)


def _first(base: Sum, seed: int, make: Callable[[random.Random], Sum]) -> Sum:
    """Draws until the sum is another one and not negative."""
    rng = random.Random(f"{seed} {base.expression}")
    while (made := make(rng)) == base or made.answer < 0:
        pass
    return made


def _numbered(index: int, terms: int, lowest: int, numbers: int) -> Sum:
    """Decodes a sum from its index: digits in base `numbers`, then signs in base 2."""
    values, signs = [], []
    for _ in range(terms):
        index, place = divmod(index, numbers)
        values.append(lowest + place)
    for _ in range(terms - 1):
        index, place = divmod(index, 2)
        signs.append(1 if place else -1)
    return Sum(tuple(values), tuple(signs))
