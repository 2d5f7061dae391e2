"""Reply: what became of a question to a judge, on its way from the server, or from a file, to a grade."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """What became of a question.

    Args:
        text: Text of the judge's message; "" if there is none.
        cut: Whether the largest number of tokens ended the text.
        failure: Reason why there is no message, such as "answered 500 …"; "" for success.
        retries: Number of requests after the first one.
    """

    text: str = ""
    cut: bool = False
    failure: str = ""
    retries: int = 0
