"""The seam of rollout engines: whatever samples completions from the current policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from saerl_lightning.records import Rollouts, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RolloutEngine(ABC):
    """Samples G completions a prompt and tells the log-probability of every sampled token.

    The constructor only stores; `start` claims memory and processes, `close` gives them back. An engine is a context
    manager: leaving it closes it. `load_weights` must be called after every optimiser step, else the samples are stale.
    """

    @abstractmethod
    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Makes the engine ready to sample from `model`.

        Args:
            model: the policy; `model.name_or_path` is the folder or hub name it was loaded from.
            tokenizer: the policy's tokenizer.
            max_model_len: longest prompt plus completion, in tokens.

        Raises:
            InputError: if what the engine needs is not installed or can't hold `max_model_len` tokens.
        """

    @abstractmethod
    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Draws `sampling.group_size` completions for each prompt.

        The same prompts, sampling and weights give the same rollouts.
        """

    def stream(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Rollouts]:
        """Yields the rollouts of consecutive prompts in parts, each as soon as it is finished.

        Together (`Rollouts.join`) they are what `generate` returns. By default there is one part: the whole.
        """
        yield self.generate(prompt_ids, sampling)

    @abstractmethod
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces the sampled weights by `named_tensors` (the whole state dict) and forgets cached prefixes."""

    @property
    def takes_adapters(self) -> bool:
        """Whether `load_adapters` may stand for `load_weights`: the engine keeps the base weights. Known after `start`."""
        return False

    def load_adapters(self, folder: Path, version: int) -> None:
        """Replaces the LoRA adapters by those in a folder, as peft saves them; the folder may go afterwards."""
        raise NotImplementedError(f"{type(self).__name__} takes whole weights only")

    def sleep(self) -> None:
        """Gives accelerator memory back until `wake`; nothing by default."""

    def wake(self) -> None:
        """Takes back the memory that `sleep` gave up; weights must be loaded again. Nothing by default."""

    @abstractmethod
    def close(self) -> None:
        """Frees what `start` claimed. Safe to call twice, and before `start`."""

    def __enter__(self) -> RolloutEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
