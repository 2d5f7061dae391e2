"""The subject of the causal tests: a model that answers sums and is read, its SAE, and what was measured of it, kept on disk.

Nothing is fitted and nothing tested here.
"""

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
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.records import Prompt, Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.signals.fingerprint import digest_model
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.sae import SAESignals
from saerl_lightning.signals.sae_source import SAESource
from saerl_lightning.signals.source import Features

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 6  # of an answer; digits are tokens of their own
ROWS = 96  # decoded at a time, so that a bar moves
BLOCK = 32  # questions of one file of measurements


class Subject:
    """A model that answers and is read, its SAE, and the layer.

    Args:
        read: the model and the layer.
        model: the whole model, in evaluation mode.
        tokenizer: its tokenizer.
        sae: the `sae_lens.SAE`.
        signal: what reads prompts with both.
    """

    def __init__(
        self, read: ReadModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sae: Any, signal: SAESignals
    ) -> None:
        self.read, self.model, self.tokenizer, self.sae, self.signal = read, model, tokenizer, sae, signal
        self.layer, _, _ = read.config()

    @classmethod
    def load(cls, model: str, sae: str, layer: int | None) -> Subject:
        """Loads everything.

        Args:
            model: HF folder or hub name.
            sae: folder of an SAE of that model and layer.
            layer: whose output is read; null takes the middle one.

        Raises:
            InputError: if either is missing, or they don't fit.
        """
        read, source = ReadModel(model, layer), SAESource(sae)
        loaded = source.load(read)  # first: it is refused in no time
        return cls(read, read.load_whole(), read.load_tokenizer(), loaded, SAESignals(read, source))

    @cached_property
    def identity(self) -> str:
        """Names model, layer and SAE by their contents."""
        return f"{digest_model(self.read)} {self.signal.sae.fingerprint()}"

    @cached_property
    def answerer(self) -> str:
        """Names the model by its contents, whatever layer of it is read."""
        return digest_model(ReadModel(self.read.path, 0, self.read.dtype))

    def features(self, questions: Sequence[Question]) -> Features:
        """Reads the questions' texts, (N, F), as `SAESignals` reads any prompt; the opening of the answer is not read."""
        return self.signal.features(prompts(questions))

    def pass_rates(
        self,
        questions: Sequence[Question],
        samples: int,
        seed: int,
        bar: tqdm[Any] | None = None,
    ) -> Float[np.ndarray, " N"]:
        """Asks every question and gives the share of right answers, at temperature 1.

        Question i of any list is answered with the same random numbers, so that two lists of edits differ by the edit.

        Args:
            questions: N questions.
            samples: answers a question.
            seed: of the answers.
            bar: is moved on by the questions that were answered.

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
        """The chat up to where the assistant begins, and the opening of the answer."""
        chats = ChatTemplate().encode(prompts(questions), self.tokenizer)
        openings: Any = self.tokenizer([question.opening for question in questions], add_special_tokens=False)
        return [chat + opening for chat, opening in zip(chats, openings["input_ids"], strict=True)]

    @cached_property
    def _engine(self) -> HFEngine:
        engine = HFEngine(ROWS, fused=True)  # a copy of the weights: the model's hooks don't fire in it
        engine.start(self.model, self.tokenizer, self.model.config.max_position_embeddings)
        engine.load_weights(named_weights(self.model), 0)
        return engine


def prompts(questions: Sequence[Question]) -> list[Prompt]:
    """The questions as prompts; equal questions have equal uids."""
    return [
        Prompt(f"sums/{each.text}", ({"role": "user", "content": each.text},), str(each.answer)) for each in questions
    ]


class Measured:
    """Measurements on disk, a file each: what was asked once is read back, so that a killed test goes on.

    Args:
        folder: of the files; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rates(self, key: dict[str, Any], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Reads an array of numbers, or computes and keeps it.

        Args:
            key: everything that the numbers depend on, as JSON can say it.
            compute: gives them.

        Raises:
            InputError: if the file that should hold them is not one of ours.
        """
        words = json.dumps(key, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(words.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            try:
                return np.array(read_json(path, "the measurement")["rates"], dtype=np.float64)
            except (InputError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"'{path}' holds no measurement ({error}); delete it, it is measured again") from error
        rates = np.asarray(compute(), dtype=np.float64)
        write_whole(path, json.dumps({"key": json.loads(words), "rates": rates.tolist()}) + "\n")
        return rates


def measure(
    subject: Subject, questions: Sequence[Question], samples: int, seed: int, cache: Measured, what: str
) -> Float[np.ndarray, " N"]:
    """Measures pass rates of any number of questions, in blocks that are kept as soon as they are done.

    Args:
        subject: who answers.
        questions: N questions.
        samples: answers a question.
        seed: of the answers; block k is asked with its own, so that no two questions of a list share random numbers.
        cache: keeps the blocks.
        what: is asked, for the bar.
    """
    from tqdm import tqdm

    found = [np.zeros(0)]
    with tqdm(total=len(questions), desc=what, unit="question") as bar:
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
            bar.update(start + len(asked) - bar.n)  # what the cache knew
    return np.concatenate(found)
