"""Activations that an SAE is trained on: whole even blocks, each position once, no held-out text, and a cache."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.errors import InputError
from saerl_lightning.sae.activations import ActivationDataModule, BlockLoader, cut
from saerl_lightning.sae.harvest import Harvester, positions, shared_prefixes
from saerl_lightning.sae.token_lists import TokenLists, tokenized
from saerl_lightning.signals.model import ReadModel
from tests.sae.small_sae import LAYER, ListedText, read


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_blocks_are_even_and_whole(sizes, block_size):
    blocks = cut(sizes, block_size)
    assert [i for part in blocks for i in range(len(sizes))[part]] == list(range(len(sizes)))
    held = [sum(sizes[part]) for part in blocks]
    assert max(held) < sum(sizes) / math.ceil(sum(sizes) / block_size) + max(sizes)
    assert len(blocks) <= math.ceil(sum(sizes) / block_size)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(1, 5), st.data()
)
def test_an_epoch_serves_each_position_once_and_can_be_entered_anywhere(blocks, size, data):
    """Activations are numbered, so that what was served can be counted; a block's harvest is asked for once a visit."""
    starts = np.cumsum([0, *(sum(block) for block in blocks)])
    ids = [[[number] * length for length in block] for number, block in enumerate(blocks)]
    batches = [sum(block) // size for block in blocks]
    if not sum(batches):
        return

    def harvest(part):
        number = part[0][0]
        return torch.arange(starts[number], starts[number + 1])[:, None]

    def loader(served):
        return BlockLoader(ids, batches, size, harvest, seed=3, served=served)

    whole = loader(0)
    first, second = ([whole.batch(step + epoch * len(whole)) for step in range(len(whole))] for epoch in (0, 1))
    for epoch in (first, second):
        served = torch.cat(epoch).flatten().tolist()
        assert len(set(served)) == len(served) == len(whole) * size
    start = data.draw(st.integers(0, 2 * len(whole) - 1))
    entered = iter(loader(start))
    rest = [*first, *second][start:]
    assert all(torch.equal(next(entered), batch) for batch in rest)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8, unique=True))
def test_shared_prefixes_leave_each_distinct_prefix_once(rows):
    ids = [list(row) for row in rows]
    left = [
        tuple(row[: i + 1])
        for row, shared in zip(ids, shared_prefixes(ids), strict=True)
        for i in range(shared, len(row))
    ]
    assert sorted(left) == sorted({tuple(row[: i + 1]) for row in ids for i in range(len(row))})


def test_a_block_is_the_hidden_states_of_the_whole_model_without_first_positions(tiny):
    """The peer is transformers' own `output_hidden_states`, prompt by prompt, without padding."""
    served = read(tiny)
    ids = served.training[:12]
    block = Harvester(served.model, 1024, token_budget=40).block(ids)
    whole = served.model.load_whole()
    with torch.no_grad():
        states = [whole(torch.tensor([row]), output_hidden_states=True).hidden_states[LAYER + 1][0, 1:] for row in ids]
    assert len(block) == positions(ids) == sum(len(row) - 1 for row in ids)
    distance = torch.cdist(torch.cat(states).double(), block.double())
    assert distance.min(0).values.max() < 1e-4
    assert distance.min(1).values.max() < 1e-4
    assert (block.sum(0) - torch.cat(states).sum(0)).abs().max() < 1e-2  # each as often as in the text


def test_held_out_text_is_not_trained_on_and_the_limit_holds(tiny):
    served = read(tiny, token_limit=200)
    assert len(served.held_out) == 6
    assert not {*map(tuple, served.held_out)} & {*map(tuple, served.training)}
    lengths = [len(row) for row in served.training]
    assert sum(lengths[:-1]) < 200 <= sum(lengths)
    rows = served.val_dataloader()
    assert sum(int(each.mask.sum()) for each in rows) == sum(map(len, served.held_out))
    distinct = {tuple(row[: i + 1]) for row in served.held_out for i in range(1, len(row))}
    assert sum(int(each.fresh.sum()) for each in rows) == len(distinct)
    assert not any(each.fresh[:, 0].any() for each in rows)


def test_a_cache_is_used_and_a_damaged_one_made_again(tiny, tmp_path, monkeypatch):
    first = read(tiny, cache=str(tmp_path))
    blocks = [first.train_dataloader().block(i) for i in range(len(first.train_dataloader().blocks))]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(blocks) > 1
    assert len(list(tmp_path.iterdir())) == len(files)
    harvests = []
    harvest = Harvester._harvest
    monkeypatch.setattr(Harvester, "_harvest", lambda self, *given: harvests.append(1) or harvest(self, *given))

    def again(**changes):
        harvests.clear()
        loader = read(tiny, cache=str(tmp_path), **changes).train_dataloader()
        return [loader.block(i) for i in range(len(loader.blocks))]

    assert all(torch.equal(a, b) for a, b in zip(again(), blocks, strict=True))
    assert not harvests
    files[0].write_bytes(files[0].read_bytes()[:-100])  # torn
    files[1].write_bytes(b"")
    assert all(torch.equal(a, b) for a, b in zip(again(), blocks, strict=True))
    assert len(harvests) == 2
    again()
    assert not harvests  # mended
    monkeypatch.setattr("saerl_lightning.sae.harvest.FORMAT", "0")
    again()
    assert len(harvests) == len(blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 100_000, "buffer_tokens": 100_000}, "fewer than one batch of 100000"),
        ({"batch_tokens": 0}, r"ActivationDataModule\.batch_tokens is 0; write a whole number from 1"),
        ({"max_tokens": 1}, r"ActivationDataModule\.max_tokens is 1; write a whole number from 2"),
        ({"buffer_tokens": 8}, "data.buffer_tokens is 8, less than a batch"),
        ({"validation": 1.0}, r"ActivationDataModule\.validation is 1\.0; write a number"),
        ({"model": ReadModel("{tiny}", 7)}, "layer is 7, but .* has layers 0 to 1"),
        ({"model": ReadModel("nowhere/at/all", 0)}, "no model could be read at 'nowhere/at/all'"),
        ({"prompts": "missing.jsonl"}, "missing.jsonl does not exist"),
    ],
)
def test_text_that_cannot_be_served_is_refused(tiny, changes, message):
    if "model" in changes:
        changes = {"model": ReadModel(changes["model"].path.replace("{tiny}", tiny), changes["model"].layer)}
    settings = {"model": ReadModel(tiny, LAYER), "prompts": ListedText(), "batch_tokens": 32, "buffer_tokens": 300}
    with pytest.raises(InputError, match=message):
        ActivationDataModule(**{**settings, **changes}).setup("fit")


def test_token_lists_are_the_lists_that_were_given_each_once():
    rows = [[5, 6, 7], [1], [5, 6, 7], [8, 9], [], [2**31 - 1, 0]]
    held = TokenLists.of(rows)
    assert list(held) == [[5, 6, 7], [8, 9], [2**31 - 1, 0]]
    assert held.tokens.nbytes == 4 * 7
    assert list(held[np.array([2, 0])][1:]) == [[5, 6, 7]] and list(held[::2]) == [[5, 6, 7], [2**31 - 1, 0]]
    assert held[-1] == [2**31 - 1, 0] and len(held[:0]) == 0 and not list(TokenLists.of([[3]]))


def blocks_of(tiny, tmp_path, **changes):
    loader = read(tiny, cache=str(tmp_path), **changes).train_dataloader()
    return [loader.block(i) for i in range(len(loader.blocks))]


def test_a_bounded_cache_keeps_its_blocks_and_replaces_those_of_other_runs(tiny, tmp_path, monkeypatch):
    whole = blocks_of(tiny, tmp_path / "all")
    size = [path.stat().st_size for path in (tmp_path / "all").glob("*.safetensors")]
    room = (min(size) + max(size)) / 1e9  # of two blocks, not of three
    assert len(whole) >= 3 and 2 * max(size) < room * 1e9 + max(size) < 3 * min(size) + max(size)
    harvests = []
    harvest = Harvester._harvest
    monkeypatch.setattr(Harvester, "_harvest", lambda self, *given: harvests.append(1) or harvest(self, *given))
    for count in (len(whole), len(whole) - 2):  # the second run finds two
        harvests.clear()
        again = blocks_of(tiny, tmp_path / "small", cache_gb=room)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
        assert len(harvests) == count and len(list((tmp_path / "small").iterdir())) == 2
    before = set((tmp_path / "small").iterdir())
    blocks_of(tiny, tmp_path / "small", cache_gb=room, seed=5)
    assert len(after := set((tmp_path / "small").iterdir())) == 2 and not before & after
    blocks_of(tiny, tmp_path / "none", cache_gb=1e-9)
    assert not (tmp_path / "none").exists()


def test_the_reader_may_compute_in_bfloat16(tiny):
    ids = list(read(tiny).training[:12])
    theirs = Harvester(ReadModel(tiny, LAYER, device="cpu"), 1024).block(ids)
    ours = Harvester(ReadModel(tiny, LAYER, dtype="bfloat16", device="cpu"), 1024).block(ids)
    assert ours.dtype == torch.bfloat16 and ours.nbytes == theirs.nbytes // 2
    assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_plain_text_is_read_without_a_template(tiny, tmp_path):
    tokenizer = ReadModel(tiny, LAYER).load_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Q {{ m['content'] }}{% endfor %}"
    source = ListedText(3)
    texts = [tokenizer(prompt.text)["input_ids"] for prompt in source.load()]
    assert list(tokenized(source, tokenizer, 1024, chat=False)) == texts
    assert list(tokenized(source, tokenizer, 1024, chat=True)) != texts
