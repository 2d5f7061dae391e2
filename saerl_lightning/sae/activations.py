"""ActivationDataModule: harvests residual-stream activations from text and serves them in shuffled batches.

It holds the position in the data, so that a resumed run continues with the next batch. Activations are scaled in
`SAEModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from saerl_lightning.data.resuming.position import ResumePoint
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, CountFrom0, CountFrom2, Positive, Seed, ShareBelow1, require_in_range
from saerl_lightning.sae.harvest import Harvester, TextLoader, TokenRows, by_length, positions, shared_prefixes
from saerl_lightning.sae.token_lists import TokenLists, tokenized
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.prefix_tree import Tokens


def cut(sizes: Sequence[int] | Int[np.ndarray, " n"], block_size: int) -> list[slice]:
    """Cuts a sequence of sizes into blocks of about `block_size` and similar size.

    A small last block would lose a large share of its positions, because incomplete batches are not served.

    Args:
        sizes: Number of positions of each token list.
        block_size: Number of positions per block, exceeded by less than one list.
    """
    ends = np.cumsum(sizes)
    blocks = max(1, -(-int(ends[-1]) // block_size))
    edges = np.searchsorted(ends, [ends[-1] * k / blocks for k in range(1, blocks)]) + 1
    marks = sorted({0, *map(int, edges), len(sizes)})
    return [slice(a, b) for a, b in pairwise(marks)]


class BlockLoader:
    """Serves batches of activations without end, starting after the batches that were already served.

    Its length is one epoch, which Lightning uses to count. It is not a torch `DataLoader`, because that would draw from
    torch's global random state.

    Args:
        blocks: Token lists of each block, for this rank.
        batches: Number of batches of each block, equal on all ranks.
        size: Number of positions per batch, on this rank.
        harvest: Function that computes the activations of token lists.
        seed: Seed of the shuffling.
        rank: Rank of this process. All ranks read the same blocks in the same order, and shuffle their own positions.
        served: Number of batches that the run has already served.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[Tokens]],
        batches: Sequence[int],
        size: int,
        harvest: Callable[[Sequence[Tokens]], Float[Tensor, "n d"]],
        seed: int = 0,
        rank: int = 0,
        served: int = 0,
    ) -> None:
        self.blocks = blocks
        self.batches = batches
        self.size = size
        self.harvest = harvest
        self.seed = seed
        self.rank = rank
        self.served = served
        self._held: tuple[int, Float[Tensor, "n d"]] | None = None
        self._order: tuple[tuple[int, int], Int[np.ndarray, " n"]] | None = None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return sum(self.batches)

    def __iter__(self) -> Iterator[Float[Tensor, "size d"]]:
        """Yields batches without end, from the first one not yet served. Lightning stops after `len` batches."""
        step = self.served
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Float[Tensor, "size d"]:
        """Returns batch number `step` of the run, from 0."""
        epoch, place = divmod(step, len(self))
        for index in self._rng(epoch).permutation(len(self.blocks)).tolist():
            if place < self.batches[index]:
                rows = self._rows(epoch, index)[place * self.size : (place + 1) * self.size]
                return self.block(index)[torch.from_numpy(rows)]
            place -= self.batches[index]
        raise AssertionError("an epoch's batches are those of its blocks")

    def block(self, index: int) -> Float[Tensor, "n d"]:
        """Returns the activations of a block. Only the last block is kept in memory."""
        if self._held is None or self._held[0] != index:
            self._held = None  # frees the memory before the next block is harvested
            self._held = index, self.harvest(self.blocks[index])
        return self._held[1]

    def first(self) -> Float[Tensor, "n d"]:
        """Returns the first block of the run."""
        return self.block(int(self._rng(0).permutation(len(self.blocks))[0]))

    def _rows(self, epoch: int, index: int) -> Int[np.ndarray, " n"]:
        if self._order is None or self._order[0] != (epoch, index):
            self._order = (epoch, index), self._rng(epoch, 1 + index, self.rank).permutation(len(self.block(index)))
        return self._order[1]

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place])

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty state, which tells Lightning that the loader can resume. The datamodule saves the position."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the state, see `state_dict`."""


class ActivationDataModule(lightning.LightningDataModule):
    """Serves activations of a causal language model at one layer, harvested during training.

    Layers after the one that is read are not run. The first position of each prompt and padding are left out. Text that
    fits into the buffer is harvested once. Longer text is harvested block by block in every epoch, unless `cache` is
    set.

    Args:
        model: Model and layer whose residual stream is read.
        prompts: Path of a prompts file, or a prompt source; `TextFiles` and `HubText` read large text document by
            document.
        batch_tokens: Number of positions per step, over all processes.
        buffer_tokens: Number of positions in memory, over all processes. Positions are shuffled within this buffer.
        token_budget: Number of tokens per forward pass while harvesting.
        max_tokens: Maximum number of tokens per prompt. Longer prompts are cut at the end.
        token_limit: Number of tokens to read from the shuffled prompts; null reads all.
        validation: Share of the prompts that is held out.
        validation_prompts: Maximum number of prompts that are held out.
        seed: Seed of the split and of the shuffling.
        cache: Folder where harvested blocks are kept for other runs on the same text; null keeps none.
        cache_gb: Largest size of that folder in GB. Blocks that do not fit are harvested again in each epoch, and blocks
            that this run has not read make room first; null for no limit.
        chat: Whether to apply the tokenizer's chat template, if it has one; write false for plain text.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        model: ReadModel,
        prompts: str | PromptSource,
        batch_tokens: Count = 2048,
        buffer_tokens: Count = 262_144,
        token_budget: Count = 1024,
        max_tokens: CountFrom2 = 1024,
        token_limit: Count | None = None,
        validation: ShareBelow1 = 0.05,
        validation_prompts: CountFrom0 = 64,
        seed: Seed = 0,
        cache: str | None = None,
        cache_gb: Positive | None = None,
        chat: bool = True,
    ) -> None:
        super().__init__()
        if buffer_tokens < batch_tokens:
            raise InputError(
                f"data.buffer_tokens is {buffer_tokens}, less than a batch (data.batch_tokens {batch_tokens}); raise it"
            )
        self.model = model
        self.prompts = prompts
        self.batch_tokens = batch_tokens
        self.buffer_tokens = buffer_tokens
        self.max_tokens = max_tokens
        self.token_limit = token_limit
        self.validation = validation
        self.validation_prompts = validation_prompts
        self.seed = seed
        self.chat = chat
        self.harvester = Harvester(model, max_tokens, token_budget, cache, cache_gb)
        self._text: tuple[TokenLists, TokenLists] | None = None  # for training, held out
        self._content: str | None = None  # digest of the text
        self._loader: BlockLoader | None = None
        self._held_out_block: Float[Tensor, "n d"] | None = None
        self.resume = ResumePoint()
        self._served = 0  # batches of this run before the loader was made
        require_in_range(self, token_budget=token_budget)

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the text. The model is loaded with the first batch.

        Raises:
            InputError: if the model or the layer does not exist, or there is too little text.
        """
        self.model.config()
        if self._text is None:
            self._text = self._read()
        if stage == "fit" and self.trainer is not None and not self._text[1]:
            # Lightning would take an empty list of batches for one empty loader.
            self.trainer.limit_val_batches = 0

    def _read(self) -> tuple[TokenLists, TokenLists]:
        source, tokenizer = open_prompts(self.prompts), self.model.load_tokenizer()
        ids = TokenLists.of(tokenized(source, tokenizer, self.max_tokens, self.chat))
        ids = ids[np.random.default_rng(self.seed).permutation(len(ids))]
        held_out = min(round(self.validation * len(ids)), self.validation_prompts)
        if held_out or (self.validation and self.validation_prompts):
            held_out = max(held_out, self._place[1])  # at least one per process
        training = ids[held_out:]
        if self.token_limit is not None:
            before = training.lengths.cumsum() - training.lengths
            training = training[before < self.token_limit]
        if positions(training) < self.batch_tokens:
            raise InputError(
                f"the text has {len(training)} prompts with {positions(training)} positions to train on (the first token of "
                f"each is left out, {held_out} prompts are held out), fewer than one batch of {self.batch_tokens}; give more "
                "prompts, or lower data.batch_tokens"
            )
        return training, ids[:held_out]

    @property
    def training(self) -> TokenLists:
        """Token lists for training.

        Raises:
            InputError: if the text is not read yet.
        """
        return self._parts[0]

    @property
    def held_out(self) -> TokenLists:
        """Token lists for validation.

        Raises:
            InputError: if the text is not read yet.
        """
        return self._parts[1]

    @property
    def _parts(self) -> tuple[TokenLists, TokenLists]:
        if self._text is None:
            raise InputError("the text is not read yet: call trainer.fit(module, data), or data.setup()")
        return self._text

    def train_dataloader(self) -> BlockLoader:
        """Serves this process's share of the activations, from the position in the checkpoint."""
        if self._loader is None:
            self._loader = self._blocks()
        return self._loader

    def _blocks(self) -> BlockLoader:
        rank, world = self._place
        if self.batch_tokens % world:
            raise InputError(
                f"data.batch_tokens is {self.batch_tokens}, which {world} processes can't share evenly; "
                f"write a multiple of {world}"
            )
        size = self.batch_tokens // world
        sizes = self.training.lengths - 1
        blocks = [self.training[part] for part in cut(sizes, self.buffer_tokens)]
        shares = [[block[other::world] for other in range(world)] for block in blocks]
        # Every rank must serve equally many batches, so the rank with the fewest positions decides.
        batches = [min(positions(share) for share in each) // size for each in shares]
        if not sum(batches):
            raise InputError(
                f"no process has a whole batch: {sum(sizes)} positions in {len(blocks)} blocks on {world} processes; give "
                f"more prompts, or lower data.batch_tokens ({self.batch_tokens})"
            )
        own: list[Sequence[Tokens]] = [each[rank] for each in shares]
        return BlockLoader(own, batches, size, self._harvest, self.seed, rank, self._served)

    def _harvest(self, ids: Sequence[Tokens]) -> Float[Tensor, "n d"]:
        show = self._place[0] == 0 and self.trainer is not None and self.trainer.progress_bar_callback is not None
        block = self.harvester.block(list(ids), show)
        self._release_reader()
        return block

    def _release_reader(self) -> None:
        """Frees the model's memory if all text is harvested."""
        if self._loader is not None and len(self._loader.blocks) == 1:
            self.harvester.release()

    def first_block(self) -> Float[Tensor, "n d"]:
        """Returns this process's activations of the first block, for measurements."""
        return self.train_dataloader().first()

    def val_dataloader(self) -> TextLoader:
        """Serves this process's share of the held-out text as token rows, which the complete model reads."""
        if not self.held_out:
            raise InputError("nothing to validate on: data.validation or data.validation_prompts is 0; raise it")
        rank, world = self._place
        ids, shared = list(self.held_out[rank::world]), shared_prefixes(list(self.held_out))[rank::world]
        groups = by_length(ids, self.harvester.token_budget)
        return TextLoader([TokenRows.pad([ids[i] for i in group], [shared[i] for i in group]) for group in groups])

    def held_out_block(self) -> Float[Tensor, "n d"] | None:
        """Returns this process's share of the held-out activations, equal positions once; None without held-out text."""
        if self._held_out_block is None and self.held_out:
            rank, world = self._place
            shared = shared_prefixes(list(self.held_out))
            self._held_out_block = self.harvester.distinct(list(self.held_out[rank::world]), shared[rank::world])
            self._release_reader()
        return self._held_out_block

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def served(self) -> int:
        """Number of batches that this run has trained on."""
        return self._served if self._loader is None else self._loader.served

    def advance(self) -> None:
        """Counts one batch as trained. Batches that were only prefetched don't count."""
        self.train_dataloader().served += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the data and a digest of the data; an empty state before the text is read."""
        if self._text is None:
            return {}
        return {"served": self.served, "text": self._digest(), **self.resume.state(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues at the checkpoint's position. Validation ignores it.

        Raises:
            InputError: if the checkpoint was trained on other data.
        """
        if self._text is None or (self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING):
            return
        if state_dict["text"] != self._digest():
            raise InputError(
                f"the checkpoint's activations are {state_dict['text']}, this run's are {self._digest()}: the prompts, the "
                "model, its layer, batch_tokens, buffer_tokens, seed or the number of processes differs; give those of the "
                "checkpoint's config.yaml, or start a new run without --ckpt_path"
            )
        self._served, self._loader = state_dict["served"], None
        self.resume.load(self.trainer, state_dict)

    def _digest(self) -> str:
        if self._content is None:
            settings = [self.model.name, self.model.config()[0], self.model.dtype, self._place[1]]
            settings += [self.batch_tokens, self.buffer_tokens, self.seed]
            self._content = self.training.digest(repr(settings).encode())
        return self._content
