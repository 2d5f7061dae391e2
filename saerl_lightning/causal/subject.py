"""The model under test: answers sums, gives SAE features of prompts, and stores its measured pass rates on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saerl_lightning.causal.sums import Question, is_right
from saerl_lightning.errors import InputError
from saerl_lightning.files import read_json, write_whole
from saerl_lightning.policy.weights import named_weights
from saerl_lightning.progress import Bar
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.records import Prompt, Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.signals.fingerprint import digest_model
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.sae import SAESignals
from saerl_lightning.signals.sae_source import SAESource
from saerl_lightning.signals.source import Features

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 6  # tokens of an answer; each digit is a token
ROWS = 96  # rows decoded at once; few, so that the progress bar moves
BLOCK = 32  # questions in one file of measurements


class Subject:
    """A language model that answers questions, with an SAE of one of its layers.

    Args:
        read: Model and layer whose activations are read.
        model: Full model in evaluation mode.
        tokenizer: Tokenizer of the model.
        sae: SAE of the layer, a `sae_lens.SAE`.
        signal: Signal source that computes SAE features of prompts.
    """

    def __init__(
        self, read: ReadModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sae: Any, signal: SAESignals
    ) -> None:
        self.read, self.model, self.tokenizer, self.sae, self.signal = read, model, tokenizer, sae, signal
        self.layer, _, _ = read.config()

    @classmethod
    def load(cls, model: str, sae: str, layer: int | None) -> Subject:
        """Loads model, tokenizer and SAE.

        Args:
            model: HF folder or hub name of the model.
            sae: Folder of an SAE of the model and layer.
            layer: Layer whose output is read, from 0; null takes the middle one.

        Raises:
            InputError: if model or SAE is missing, or they do not fit each other.
        """
        read, source = ReadModel(model, layer), SAESource(sae)
        # The SAE is loaded before the model, because a faulty one is found at once.
        loaded = source.load(read)
        return cls(read, read.load_whole(), read.load_tokenizer(), loaded, SAESignals(read, source))

    @cached_property
    def identity(self) -> str:
        """Identifies model, layer and SAE by their contents."""
        return f"{digest_model(self.read)} {self.signal.sae.fingerprint()}"

    @cached_property
    def answerer(self) -> str:
        """Identifies the model by its contents, without the layer."""
        return digest_model(ReadModel(self.read.path, 0, self.read.dtype))

    def features(self, questions: Sequence[Question]) -> Features:
        """Computes SAE features of the questions' texts, (N, F), as `SAESignals` does; openings are not read."""
        return self.signal.features(prompts(questions))

    def pass_rates(
        self,
        questions: Sequence[Question],
        samples: int,
        seed: int,
        bar: Bar | None = None,
    ) -> Float[np.ndarray, " N"]:
        """Samples answers at temperature 1 and returns the share of right ones for each question.

        Question i of any list gets the same random numbers, so that two lists of edits differ by the edit only.

        Args:
            questions: The N questions.
            samples: Number of answers to each question.
            seed: Seed of the answers.
            bar: Progress bar that counts answered questions; null for none.

        Raises:
            InputError: if `samples` is below 1.
        """
        if samples < 1:
            raise InputError(f"samples is {samples}; write 1 or more")
        if not questions:
            return np.zeros(0)
        ids = self.ids(questions)
        sampling = Sampling(group_size=samples, max_tokens=TOKENS, seed=seed)
        rates: list[float] = []
        for part in self._engine.stream(ids, sampling):
            asked = questions[len(rates) : len(rates) + len(part.texts) // samples]
            for place, question in enumerate(asked):
                texts = part.texts[place * samples : (place + 1) * samples]
                rates.append(sum(is_right(question, text) for text in texts) / samples)
            if bar is not None:
                bar.update(len(asked))
        return np.array(rates)

    def ids(self, questions: Sequence[Question]) -> list[list[int]]:
        """Encodes the chat with the generation prompt and the opening of the answer."""
        chats = ChatTemplate().encode(prompts(questions), self.tokenizer)
        openings: Any = self.tokenizer([question.opening for question in questions], add_special_tokens=False)
        return [chat + opening for chat, opening in zip(chats, openings["input_ids"], strict=True)]

    @cached_property
    def _engine(self) -> HFEngine:
        engine = HFEngine(ROWS, fused=True)  # a copy of the weights, in which the model's hooks do not run
        engine.start(self.model, self.tokenizer, self.model.config.max_position_embeddings)
        engine.load_weights(named_weights(self.model), 0)
        return engine


def prompts(questions: Sequence[Question]) -> list[Prompt]:
    """Turns questions into prompts; equal questions have equal uids."""
    return [Prompt.asking(f"sums/{each.text}", each.text, str(each.answer)) for each in questions]


class MeasurementCache:
    """Cache of measurements on disk, one file each, so that an interrupted test can resume.

    Args:
        folder: Folder of the files; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rates(self, key: dict[str, Any], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Reads an array of numbers from the cache, or computes and stores it.

        Args:
            key: Everything that the numbers depend on, as values of JSON.
            compute: Function that computes the numbers.

        Raises:
            InputError: if the file exists and was not written by this cache.
        """
        text = json.dumps(key, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            try:
                return np.array(read_json(path, "the measurement")["rates"], dtype=np.float64)
            except (InputError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"'{path}' holds no measurement ({error}); delete it, it is measured again") from error
        rates = np.asarray(compute(), dtype=np.float64)
        write_whole(path, json.dumps({"key": json.loads(text), "rates": rates.tolist()}) + "\n")
        return rates


def measure(
    subject: Subject, questions: Sequence[Question], samples: int, seed: int, cache: MeasurementCache, what: str
) -> Float[np.ndarray, " N"]:
    """Measures pass rates of any number of questions, in blocks that are stored once they are measured.

    Args:
        subject: Model that answers.
        questions: The N questions.
        samples: Number of answers to each question.
        seed: Seed of the answers; block k has its own, so that no two questions of a list share random numbers.
        cache: Cache that stores the blocks.
        what: Text of the progress bar.
    """
    found = [np.zeros(0)]
    with Bar(total=len(questions), desc=what, unit="question") as bar:
        for number, start in enumerate(range(0, len(questions), BLOCK)):
            asked, block_seed = questions[start : start + BLOCK], seed + 7919 * number
            key = {
                "model": subject.answerer,
                "questions": [[each.text, each.opening, each.answer] for each in asked],
                "samples": samples,
                "seed": block_seed,
                "tokens": TOKENS,
            }
            found.append(cache.rates(key, lambda a=asked, s=block_seed: subject.pass_rates(a, samples, s, bar=bar)))
            bar.update(start + len(asked) - bar.n)  # questions found in the cache
    return np.concatenate(found)
