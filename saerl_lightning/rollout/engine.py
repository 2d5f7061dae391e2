"""RolloutEngine: the interface of everything that samples completions from the current policy."""

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
    """Samples G completions a prompt and gives the log-probability of every sampled token.

    The constructor only stores. `start` claims memory and processes, `close` frees them, and so does leaving the
    engine's `with` block. `load_weights` must be called after every optimiser step; otherwise completions come from old
    weights.
    """

    def check(self) -> None:
        """Refuses a machine on which it can't start, before anything is loaded; nothing by default.

        Raises:
            InputError: if a package is not installed.
        """

    def require_processes(self, processes: int) -> None:
        """Refuses a number of training processes that it can't sample for; takes any by default.

        Args:
            processes: Number of training processes on all machines.

        Raises:
            InputError: if there are too many.
        """

    @abstractmethod
    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Prepares the engine to sample from `model`.

        Args:
            model: Policy that is sampled; `model.name_or_path` is the folder or hub name that it was loaded from.
            tokenizer: Tokenizer of the policy.
            max_model_len: Largest number of tokens of a prompt plus completion.

        Raises:
            InputError: if a package is not installed, or the engine can't hold `max_model_len` tokens.
        """

    @abstractmethod
    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Samples `sampling.group_size` completions for each prompt.

        The same prompts, sampling and weights give the same rollouts. What is sampled of a prompt depends on
        `sampling.seed` and on its place in the batch of all processes (`decoding.prompt_seeds` makes a seed of both), not
        on the process that samples it.
        """

    def stream(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Rollouts]:
        """Yields the rollouts of consecutive prompts in parts, each as soon as it is finished.

        Joined by `Rollouts.join`, the parts equal the result of `generate`. The default is a single part.
        """
        yield self.generate(prompt_ids, sampling)

    @abstractmethod
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces the engine's weights by `named_tensors` (the full state dict) and clears cached prefixes."""

    @property
    def samples_by_policy(self) -> bool:
        """Whether it samples by the policy's own modules, which can't be done where they are sharded over processes."""
        return False

    @property
    def concurrent(self) -> bool:
        """Whether `stream` may run in a second thread while the policy is trained.

        Such an engine samples by weights of its own, on devices that the trainer does not use, so that `sleep` frees
        nothing; `generate` may be called meanwhile, and `close` ends what the second thread waits for.
        """
        return False

    @property
    def takes_adapters(self) -> bool:
        """Whether `load_adapters` can replace `load_weights`, as the engine keeps base weights. Known after `start`."""
        return False

    def load_adapters(self, folder: Path, version: int) -> None:
        """Replaces the LoRA adapters by those in a folder in peft's format; the folder may be deleted afterwards."""
        raise NotImplementedError(f"{type(self).__name__} takes whole weights only")

    def sleep(self) -> None:
        """Frees accelerator memory until `wake`; does nothing by default."""

    def wake(self) -> None:
        """Claims again the memory that `sleep` freed; weights must be loaded again. Does nothing by default."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything that `start` claimed. May be called twice, or before `start`."""

    def __enter__(self) -> RolloutEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
