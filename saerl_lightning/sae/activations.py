"""ActivationDataModule: text becomes residual-stream activations, served in shuffled batches from blocks in memory.

It decides what is read and in which order, and owns the cursor, so that a resumed run goes on with the next batch. It
trains nothing: the norm that activations are scaled to is the module's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from saerl_lightning.data.resume import ResumePoint
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Count, CountFrom0, CountFrom2, Seed, ShareBelow1, require_in_range
from saerl_lightning.sae.harvest import Harvester, TextLoader, TokenRows, by_length, positions, shared_prefixes
from saerl_lightning.signals.model import ReadModel, encode
from saerl_lightning.signals.prefix_tree import Tokens


def cut(sizes: Sequence[int], block_size: int) -> list[slice]:
    """Cuts a sequence of sizes into as few even blocks as keep each near `block_size`.

    Even, because a small last block would leave out a large share of its positions.

    Args:
        sizes: positions of each token list.
        block_size: positions that a block should hold; a block may be over by less than one list.
    """
    ends = np.cumsum(sizes)
    blocks = max(1, -(-int(ends[-1]) // block_size))
    edges = np.searchsorted(ends, [ends[-1] * k / blocks for k in range(1, blocks)]) + 1
    marks = sorted({0, *map(int, edges), len(sizes)})
    return [slice(a, b) for a, b in pairwise(marks)]


class BlockLoader:
    """Serves batches of activations without end, from the batch that comes next in the run.

    Its length is that of an epoch, which is how Lightning counts. It is a plain iterable and no torch `DataLoader`, which
    would draw from torch's global random state.

    Args:
        blocks: token lists of each block, of this rank.
        batches: batches of each block, the same on every rank.
        size: positions a batch, of this rank.
        harvest: makes activations of token lists.
        seed: of the orders.
        rank: of this process; ranks go through the same blocks, each through its own positions.
        served: batches that the run has served before.
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
        """Batches of an epoch."""
        return sum(self.batches)

    def __iter__(self) -> Iterator[Float[Tensor, "size d"]]:
        """Starts behind the last batch that was served; ends never, for Lightning stops at the length."""
        step = self.served
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Float[Tensor, "size d"]:
        """The batch that a run serves as number `step`, from 0."""
        epoch, place = divmod(step, len(self))
        for index in self._rng(epoch).permutation(len(self.blocks)).tolist():
            if place < self.batches[index]:
                rows = self._rows(epoch, index)[place * self.size : (place + 1) * self.size]
                return self.block(index)[torch.from_numpy(rows)]
            place -= self.batches[index]
        raise AssertionError("an epoch's batches are those of its blocks")

    def block(self, index: int) -> Float[Tensor, "n d"]:
        """The activations of a block; the last one asked for is kept."""
        if self._held is None or self._held[0] != index:
            self._held = None  # its memory goes before the next block's comes
            self._held = index, self.harvest(self.blocks[index])
        return self._held[1]

    def first(self) -> Float[Tensor, "n d"]:
        """The block that a run begins with."""
        return self.block(int(self._rng(0).permutation(len(self.blocks))[0]))

    def _rows(self, epoch: int, index: int) -> Int[np.ndarray, " n"]:
        if self._order is None or self._order[0] != (epoch, index):
            self._order = (epoch, index), self._rng(epoch, 1 + index, self.rank).permutation(len(self.block(index)))
        return self._order[1]

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place])

    def state_dict(self) -> dict[str, Any]:
        """Holds nothing: it tells Lightning that this loader resumes; the datamodule's state has the cursor."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing back, see `state_dict`."""


class ActivationDataModule(lightning.LightningDataModule):
    """Serves activations of a causal language model at one layer, harvested while training goes on.

    Layers behind the one that is read are never run. The first position of a prompt and padding are left out. Text that
    fits the buffer is harvested once; more text is harvested block by block, in every epoch again unless `cache` keeps it.

    Args:
        model: whose residual stream is read.
        prompts: path of a prompts file, or a source: the text, through the chat template where the tokenizer has one.
        batch_tokens: positions a step, over all processes.
        buffer_tokens: positions in memory, over all processes, which are shuffled among each other.
        token_budget: tokens of a forward pass while harvesting.
        max_tokens: longest prompt in tokens; longer ones lose their end.
        token_limit: read prompts, in shuffled order, up to this many tokens; null reads all.
        validation: share of the prompts that is held out.
        validation_prompts: hold out at most this many.
        seed: of the split and of the order.
        cache: folder where harvested blocks are kept for other runs over the same text; null keeps none.

    Raises:
        InputError: if a number is out of its range.
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
        self.harvester = Harvester(model, max_tokens, token_budget, cache)
        self._text: tuple[list[Tokens], list[Tokens]] | None = None  # to train on, held out
        self._loader: BlockLoader | None = None
        self._held_out_block: Float[Tensor, "n d"] | None = None
        self.resume = ResumePoint()
        self._served = 0  # batches of this run that came before the loader was made
        require_in_range(self, token_budget=token_budget)

    def setup(self, stage: str | None = None) -> None:
        """Reads the text and splits it; the model itself is loaded with the first batch.

        Raises:
            InputError: if the model or its layer does not exist, or there is too little text.
        """
        self.model.config()
        if self._text is None:
            self._text = self._read()
        if stage == "fit" and self.trainer is not None and not self._text[1]:
            self.trainer.limit_val_batches = 0  # Lightning takes an empty list of batches for one empty loader

    def _read(self) -> tuple[list[Tokens], list[Tokens]]:
        source = FilePrompts(self.prompts) if isinstance(self.prompts, str) else self.prompts
        encoded = encode(source.load(), self.model.load_tokenizer(), self.max_tokens)
        ids = [list(row) for row in dict.fromkeys(map(tuple, encoded)) if len(row) > 1]  # the same text once
        order = np.random.default_rng(self.seed).permutation(len(ids))
        ids = [ids[row] for row in order]
        held_out = min(round(self.validation * len(ids)), self.validation_prompts)
        if held_out or (self.validation and self.validation_prompts):
            held_out = max(held_out, self._place[1])  # every process has one
        training = ids[held_out:]
        if self.token_limit is not None:
            before = accumulate(map(len, training), initial=0)
            training = [row for row, read in zip(training, before, strict=False) if read < self.token_limit]
        if positions(training) < self.batch_tokens:
            raise InputError(
                f"the text has {len(training)} prompts with {positions(training)} positions to train on (the first token of "
                f"each is left out, {held_out} prompts are held out), fewer than one batch of {self.batch_tokens}; give more "
                "prompts, or lower data.batch_tokens"
            )
        return training, ids[:held_out]

    @property
    def training(self) -> list[Tokens]:
        """Token lists that are trained on."""
        assert self._text is not None, "setup reads the text"
        return self._text[0]

    @property
    def held_out(self) -> list[Tokens]:
        """Token lists that are validated on."""
        assert self._text is not None, "setup reads the text"
        return self._text[1]

    def train_dataloader(self) -> BlockLoader:
        """Serves this process's share of the activations, from the checkpoint's cursor on."""
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
        sizes = [len(row) - 1 for row in self.training]
        blocks = [self.training[part] for part in cut(sizes, self.buffer_tokens)]
        shares = [[block[other::world] for other in range(world)] for block in blocks]
        batches = [min(positions(share) for share in each) // size for each in shares]
        if not sum(batches):
            raise InputError(
                f"no process has a whole batch: {sum(sizes)} positions in {len(blocks)} blocks on {world} processes; give "
                f"more prompts, or lower data.batch_tokens ({self.batch_tokens})"
            )
        own = [each[rank] for each in shares]
        return BlockLoader(own, batches, size, self._harvest, self.seed, rank, self._served)

    def _harvest(self, ids: Sequence[Tokens]) -> Float[Tensor, "n d"]:
        show = self._place[0] == 0 and self.trainer is not None and self.trainer.progress_bar_callback is not None
        block = self.harvester.block(ids, show)
        self._release_reader()
        return block

    def _release_reader(self) -> None:
        """Gives the model's memory back where no text is left to be harvested."""
        if self._loader is not None and len(self._loader.blocks) == 1:
            self.harvester.release()

    def first_block(self) -> Float[Tensor, "n d"]:
        """This process's activations of the block that a run begins with, to measure them."""
        return self.train_dataloader().first()

    def val_dataloader(self) -> TextLoader:
        """Serves this process's share of the held-out text, as token rows: the whole model reads them."""
        if not self.held_out:
            raise InputError("nothing to validate on: data.validation or data.validation_prompts is 0; raise it")
        rank, world = self._place
        ids, shared = self.held_out[rank::world], shared_prefixes(self.held_out)[rank::world]
        groups = by_length(ids, self.harvester.token_budget)
        return TextLoader([TokenRows.pad([ids[i] for i in group], [shared[i] for i in group]) for group in groups])

    def held_out_block(self) -> Float[Tensor, "n d"] | None:
        """This process's share of the held-out text as activations, equal positions once; None where none is held out."""
        if self._held_out_block is None and self.held_out:
            rank, world = self._place
            shared = shared_prefixes(self.held_out)
            self._held_out_block = self.harvester.distinct(self.held_out[rank::world], shared[rank::world])
            self._release_reader()
        return self._held_out_block

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def served(self) -> int:
        """Batches that this run has trained on."""
        return self._served if self._loader is None else self._loader.served

    def advance(self) -> None:
        """Counts one batch as trained, however many were fetched."""
        self.train_dataloader().served += 1

    def state_dict(self) -> dict[str, Any]:
        """Holds the cursor and a digest of what is served; nothing before the text is read."""
        if self._text is None:
            return {}
        return {"served": self.served, "text": self._digest(), **self.resume.state(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the checkpoint stopped; `validate` takes nothing from it.

        Raises:
            InputError: if the checkpoint was trained on other batches.
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
        settings = [self.model.name, self.model.config()[0], self.model.dtype, self._place[1]]
        settings += [self.batch_tokens, self.buffer_tokens, self.seed]
        digest = hashlib.sha256(repr(settings).encode())
        for row in self.training:
            digest.update(np.array([len(row), *row], dtype="<i8").tobytes())
        return digest.hexdigest()[:12]
