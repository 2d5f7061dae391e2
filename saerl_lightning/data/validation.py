"""Named evaluation sets, each with its own sampling, without questions that are trained on; the datamodule serves them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.utilities import rank_zero_warn

from saerl_lightning.data.prompt_pool import PromptPool
from saerl_lightning.data.serving import PromptLoader
from saerl_lightning.errors import InputError, require_name
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, require_in_range
from saerl_lightning.records import Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ValidationSet:
    """An evaluation set with its own sampling.

    Args:
        source: Path of a file or folder of prompts, name on the hub, or prompt source.
        sampling: Sampling of the completions; null takes the datamodule's `val_sampling`.
        limit: Number of prompts to use, from the start of the set; null uses all.
        keep_trained: Whether to keep questions that are also in the training prompts, to measure how well these are
            learned.
        columns: Column of each prompt field, if `source` is a path; null takes `data.columns`.
    """

    source: str | PromptSource
    sampling: Sampling | None = None
    limit: Count | None = None
    keep_trained: bool = False
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuses a limit below 1."""
        require_in_range(self)


@dataclass(frozen=True)
class EvaluationPool:
    """A named pool for evaluation, with its sampling."""

    name: str
    pool: PromptPool
    sampling: Sampling
    keep_trained: bool = False  # whether questions that are also trained on are kept

    @classmethod
    def read(
        cls,
        name: str,
        given: str | PromptSource | ValidationSet,
        chat: ChatTemplate,
        tokenizer: PreTrainedTokenizerBase,
        default: Sampling,
        columns: dict[str, str] | None = None,
    ) -> EvaluationPool:
        """Reads a named set. `default` is the sampling of sets without their own, and so are `columns`.

        Raises:
            InputError: if no prompt of the set is short enough.
        """
        wanted = given if isinstance(given, ValidationSet) else ValidationSet(given)
        source = open_prompts(wanted.source, columns if wanted.columns is None else wanted.columns)
        pool = PromptPool.read(name, source, chat, tokenizer, wanted.limit)
        if not pool.servable():
            raise InputError(f"set '{name}' has no prompt that is short enough; raise data.chat.max_prompt_tokens")
        return cls(name, pool, wanted.sampling or default, wanted.keep_trained)

    def loader(self, size: int, rank: int, world: int) -> PromptLoader:
        """Serves this rank's questions (every world-th) in batches of at most `size`.

        The place of a question is that in the whole set: what is sampled depends neither on `size` nor on `world`.
        """
        servable = self.pool.servable()
        places = list(range(rank, len(servable), world))
        batches = [places[i : i + size] for i in range(0, len(places), size)]
        return PromptLoader(batches, lambda places: self.pool.batch([servable[p] for p in places], places))

    def unseen(self, trained: Set[str]) -> EvaluationPool:
        """Returns the set without the questions that are trained on, and reports their number.

        Args:
            trained: Normalised texts of the training prompts.

        Raises:
            InputError: if no question is left.
        """
        if self.keep_trained:
            return self
        pool, total = self.pool.without(trained), len(self.pool.prompts)
        if dropped := total - len(pool.prompts):
            rank_zero_warn(
                f"set '{self.name}': {dropped} of its {total} questions stand in data.train too, and are dropped"
            )
        if not pool.servable():
            raise InputError(
                f"set '{self.name}' has no question that is not trained on; name other questions, or write "
                f"{{{self.name}: {{source: ..., keep_trained: true}}}} to measure on these"
            )
        return replace(self, pool=pool)


def require_set_names(names: Iterable[str]) -> None:
    """Refuses names of sets that would be ambiguous in metric names.

    Raises:
        InputError: for the first such name.
    """
    for name in names:
        require_name("the set", name)
        if name == "macro":
            raise InputError("the set 'macro': the mean over all sets has that name in the logs; choose another")


class EvaluationDataModule(lightning.LightningDataModule, ABC):
    """Base of datamodules that serve named sets. Subclasses store the fields below, and read the sets in `setup`."""

    chat: ChatTemplate
    tokenizer: PreTrainedTokenizerBase | None
    val_sampling: Sampling
    val_batch_size: int
    columns: dict[str, str] | None
    val: dict[str, str | ValidationSet | PromptSource]
    _val_pools: list[EvaluationPool]
    _test_pools: list[EvaluationPool]

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return [each.name for each in self._val_pools]

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of their loaders."""
        return [each.name for each in self._test_pools]

    def evaluated(self, stage: str) -> list[list[Prompt]]:
        """Returns the prompts of each set that a stage grades.

        Args:
            stage: Stage of the run, as Lightning names it.
        """
        graded = {"fit": self._val_pools, "validate": self._val_pools, "test": self._test_pools}
        return [each.pool.prompts for each in graded.get(stage, [])]

    @property
    def samples_a_question(self) -> dict[str, int]:
        """Number of completions per question for each validation set; known before the sets are read."""
        own = {name: each.sampling for name, each in self.val.items() if isinstance(each, ValidationSet)}
        return {name: (own.get(name) or self.val_sampling).group_size for name in self.val}

    @property
    def samplings(self) -> list[Sampling]:
        """Sampling of each set that was read."""
        return [each.sampling for each in self._val_pools + self._test_pools]

    @property
    def topics(self) -> list[str]:
        """Topics in the sets that were read, sorted."""
        pools = [each.pool for each in self._val_pools + self._test_pools]
        return sorted({prompt.topic for pool in pools for prompt in pool.prompts if prompt.topic is not None})

    def val_set(self, index: int) -> Sampling:
        """Returns the sampling of a validation loader's set."""
        return self._val_pools[index].sampling

    def test_set(self, index: int) -> Sampling:
        """Returns the sampling of a test loader's set."""
        return self._test_pools[index].sampling

    def read_sets(self, sets: dict[str, str | ValidationSet | PromptSource]) -> list[EvaluationPool]:
        """Reads and encodes named sets.

        Raises:
            InputError: if a source can't be read, or no prompt of a set is short enough.
        """
        tokenizer, default = self.find_tokenizer(), self.val_sampling
        return [EvaluationPool.read(n, each, self.chat, tokenizer, default, self.columns) for n, each in sets.items()]

    def find_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer that was set, or else the model's, with the chat template that `chat` names.

        Raises:
            InputError: if there is no tokenizer.
        """
        if self.tokenizer is None:
            self.tokenizer = getattr(getattr(self.trainer, "lightning_module", None), "tokenizer", None)
        if self.tokenizer is None:
            raise InputError(
                "there is no tokenizer: without a trainer, or with a model that has none, set it first, as "
                "data.tokenizer = policy.load_tokenizer()"
            )
        return self.chat.fitted(self.tokenizer)

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> list[PromptLoader]:
        """Serves the validation sets, one loader per set."""
        return self._loaders(self._val_pools)

    def test_dataloader(self) -> list[PromptLoader]:
        """Serves the test sets, one loader per set."""
        return self._loaders(self._test_pools)

    predict_dataloader = test_dataloader

    def _loaders(self, pools: list[EvaluationPool]) -> list[PromptLoader]:
        if not pools:
            raise InputError(
                "nothing to evaluate on: data.val (or data.test) names no set; write e.g. {dev: dev.jsonl}"
            )
        return [each.loader(self.val_batch_size, *self.place) for each in pools]
