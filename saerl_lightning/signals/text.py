"""Text signals without a model: TF-IDF and simple length measures. They are baselines for signals from a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, Range, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.signals.fingerprint import digest, digest_prompts
from saerl_lightning.signals.source import SignalSource

NGrams = Annotated[int, Range(1, 100)]

VERSION = "1"  # raise it when the same arguments give other features

WORD = re.compile(r"\\?[^\W\d_]+|\d+|[^\w\s]|_")  # words, LaTeX commands, numbers, single signs
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
LATEX = re.compile(r"\\[A-Za-z]+|[\\$^_{}=+\-*/<>|&]")


class TextSignals(SignalSource):
    """TF-IDF of the prompt's words, LaTeX commands, numbers and signs, in lower case, with rows of unit length.

    Vocabulary and document frequencies come from the prompts that are read, so each row depends on all of them.

    Args:
        max_features: Largest number of terms (F); the most frequent ones are kept.
        ngrams: Number of words in the longest term.
        sublinear: Whether a term that occurs n times counts as 1 + log n instead of n.

    Raises:
        InputError: if a number is below 1.
    """

    def __init__(self, max_features: Count = 8192, ngrams: NGrams = 2, sublinear: bool = True) -> None:
        self.max_features = max_features
        self.ngrams = ngrams
        self.sublinear = sublinear
        self.names: list[str] | None = None  # F, terms of the columns, known after `features`
        require_in_range(self)

    def features(self, prompts: Sequence[Prompt]) -> csr_array:
        """Fits TF-IDF to the prompts and returns their rows, (N, F) float32.

        Raises:
            InputError: if no prompt contains a word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [prompt.text for prompt in prompts]
        if not any(WORD.search(text) for text in texts):
            raise InputError(f"TextSignals found no word in {len(texts)} prompts; give prompts that have text")
        vectorizer = TfidfVectorizer(
            token_pattern=WORD.pattern,
            ngram_range=(1, self.ngrams),
            max_features=self.max_features,
            sublinear_tf=self.sublinear,
            dtype=np.float32,  # pyright: ignore[reportArgumentType]  # scikit-learn's own annotation is too narrow
        )
        rows = csr_array(vectorizer.fit_transform(texts))
        self.names = vectorizer.get_feature_names_out().tolist()
        return rows

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of the arguments and the prompts."""
        numbers = (str(self.max_features), str(self.ngrams), str(self.sublinear))
        return digest([type(self).__name__, VERSION, *numbers, digest_prompts(prompts)])


class LengthSignals(SignalSource):
    """Six simple measures of a prompt's text. A useful difficulty signal must do better than these.

    The columns: log(1 + characters), log(1 + words), log(1 + digits), log(1 + numbers), log(1 + sentences), and the share
    of characters that belong to LaTeX commands, brackets or operators.
    """

    names = ("log_characters", "log_words", "log_digits", "log_numbers", "log_sentences", "latex_share")

    def features(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "N 6"]:
        """Measures every text, (N, 6)."""
        return np.array([measures(prompt.text) for prompt in prompts]).reshape(-1, len(self.names))

    @property
    def by_row(self) -> bool:
        """True, because a row depends on its prompt's text alone."""
        return True

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Returns a digest of the prompts."""
        return digest([type(self).__name__, VERSION, digest_prompts(prompts)])


def measures(text: str) -> list[float]:
    """Computes the six measures of a text, in the order of `LengthSignals.names`."""
    digits = sum(letter.isdigit() for letter in text)
    counts = (len(text), len(text.split()), digits, len(NUMBER.findall(text)), len(SENTENCE_END.findall(text)))
    latex = sum(len(found) for found in LATEX.findall(text))
    return [*np.log1p(counts).tolist(), latex / max(len(text), 1)]
