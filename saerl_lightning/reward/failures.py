"""Failures: the completions that a reward could not grade, counted by kind."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger(__name__)


class Failures:
    """Counts the completions that were not graded, keeps why the last one was not, and warns of the first."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()  # number of completions of each kind of failure
        self.last = ""  # what happened last, such as "raised ValueError for the prompt 'p1'"

    def note(self, subject: str, did: str, uid: str, text: str) -> None:
        """Counts a failure.

        Args:
            subject: What failed, for the warning, such as "my_rewards.py:accuracy".
            did: What it did, such as "raised ValueError('1/0') (my_rewards.py, line 3)"; its kind is what stands before
                the first bracket.
            uid: Id of the prompt.
            text: The completion that was not graded.
        """
        what = f"{did} for the prompt {uid!r} and the completion {text[:200]!r}"
        if not self.last:
            log.warning("%s %s; it counts as not graded, not as wrong (later ones are only counted)", subject, what)
        self.kinds[did.split("(")[0].strip()] += 1
        self.last = what
