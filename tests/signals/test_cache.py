"""The cache: read back bit for bit, going on after a kill, and nothing damaged or foreign is trusted."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array, random_array

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals import cache
from saerl_lightning.signals.cache import CachedSignals, cached, grouped
from saerl_lightning.signals.random_signals import RandomSignals, ShuffledSignals
from saerl_lightning.signals.sae import SAESignals
from saerl_lightning.signals.source import SignalSource


def pool(count: int = 700) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"What is {i}?", "") for i in range(count)]


class Streaming(SignalSource):
    """Rows keyed by uid, in parts of `size` prompts, last prompts first; it counts what it was asked for and may die."""

    def __init__(self, size: int = 50, dies_after: int | None = None, sparse: bool = True) -> None:
        self.size = size
        self.dies_after = dies_after
        self.sparse = sparse
        self.asked: list[int] = []

    by_row = True

    def features(self, prompts):
        numbers = np.array([int(prompt.uid[1:]) for prompt in prompts])
        rows = np.where(numbers[:, None] % [2, 3, 5] == 0, np.sin(numbers[:, None] + [1, 2, 3]), 0).astype(np.float32)
        return csr_array(rows) if self.sparse else rows

    def fingerprint(self, prompts):
        return f"streaming {self.sparse} / {[prompt.uid for prompt in prompts]}"

    def stream(self, prompts):
        self.asked.append(len(prompts))
        for part, start in enumerate(reversed(range(0, len(prompts), self.size))):
            if part == self.dies_after:
                raise KeyboardInterrupt
            positions = np.arange(start, min(start + self.size, len(prompts)))
            yield positions, self.features([prompts[i] for i in positions])


def bits(rows) -> list[bytes]:
    arrays = [rows] if isinstance(rows, np.ndarray) else [rows.data, rows.indices, rows.indptr]
    return [array.dtype.str.encode() + array.tobytes() for array in arrays]


def dense(rows) -> np.ndarray:
    return rows.toarray() if isinstance(rows, csr_array) else rows


@pytest.mark.parametrize("sparse", [True, False])
def test_the_second_call_reads_the_first_ones_bits(tmp_path, sparse):
    source = Streaming(sparse=sparse)
    first = CachedSignals(source, str(tmp_path)).features(pool())
    again = CachedSignals(source, str(tmp_path)).features(pool())
    assert bits(first) == bits(again) and source.asked == [700]
    np.testing.assert_array_equal(dense(again), dense(source.features(pool())))


def test_another_pool_asks_only_for_prompts_that_were_never_read(tmp_path):
    source = Streaming()
    CachedSignals(source, str(tmp_path)).features(pool(100))
    other = pool(120)[::-1][:60] + pool(30)
    np.testing.assert_array_equal(
        dense(CachedSignals(source, str(tmp_path)).features(other)), dense(source.features(other))
    )
    assert source.asked == [100, 20]


def test_a_killed_extraction_goes_on_where_it_was(tmp_path):
    source = Streaming(dies_after=8)  # eight parts of 50: one shard of 300 was written
    cached = CachedSignals(source, str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        cached.features(pool())
    source.dies_after = None
    np.testing.assert_array_equal(dense(cached.features(pool())), dense(source.features(pool())))
    assert source.asked == [700, 400]


def test_damaged_and_foreign_shards_are_computed_again(tmp_path):
    source = Streaming(dies_after=13)  # two shards of 300
    cached = CachedSignals(source, str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        cached.features(pool())
    source.dies_after = None
    first, second = sorted(tmp_path.rglob("*.npz"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    (first.parent / ".half-written").mkdir()
    (first.parent / ".half-written" / "shard.npz").write_bytes(second.read_bytes()[:100])
    np.testing.assert_array_equal(dense(cached.features(pool())), dense(source.features(pool())))
    assert source.asked == [700, 400]


DAMAGES = {
    "a flipped bit": lambda shard: _flip(shard),
    "cut short": lambda shard: shard.write_bytes(shard.read_bytes()[:-9]),
    "gone": lambda shard: shard.unlink(),
    "empty": lambda shard: shard.write_bytes(b""),
    "something else": lambda shard: shard.write_text("[]"),
}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    source = Streaming()
    first = CachedSignals(source, str(tmp_path)).features(pool())
    (lost,) = (file for file in tmp_path.rglob("*.npz") if len(np.load(file)["keys"]) == 100)
    DAMAGES[damage](lost)
    again = CachedSignals(source, str(tmp_path)).features(pool())
    assert bits(first) == bits(again) and source.asked == [700, 100]
    assert bits(CachedSignals(source, str(tmp_path)).features(pool())) == bits(first) and len(source.asked) == 2


def test_a_cache_of_another_version_is_rebuilt(tmp_path, monkeypatch, caplog):
    source = Streaming()
    CachedSignals(source, str(tmp_path)).features(pool())
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    with caplog.at_level(logging.WARNING):
        CachedSignals(source, str(tmp_path)).features(pool())
    assert source.asked == [700, 700] and "of another version" in caplog.text
    assert len(list(tmp_path.rglob("*.npz"))) == 3


def test_each_source_and_pool_has_a_cache_of_its_own(tmp_path):
    for inner in (RandomSignals(3), RandomSignals(3, seed=1), Streaming(), ShuffledSignals(RandomSignals(3))):
        for prompts in (pool(20), pool(21), pool(20)[::-1]):
            np.testing.assert_array_equal(
                dense(CachedSignals(inner, str(tmp_path)).features(prompts)), dense(inner.features(prompts))
            )
    assert len([place for place in tmp_path.iterdir() if place.is_dir()]) == 1 + 1 + 1 + 3


def test_a_cache_of_a_cache_is_one_cache(tmp_path):
    source = Streaming()
    for _ in range(2):
        CachedSignals(CachedSignals(source, str(tmp_path)), str(tmp_path)).features(pool())
    assert source.asked == [700] and len([place for place in tmp_path.iterdir() if place.is_dir()]) == 1


def test_a_source_that_leaves_prompts_out_is_refused(tmp_path):
    class Forgetful(Streaming):
        def stream(self, prompts):
            yield from list(super().stream(prompts))[1:]

    with pytest.raises(InputError, match=r"holds 650 of 700 prompts"):
        CachedSignals(Forgetful(), str(tmp_path)).features(pool())


def test_no_prompts_are_not_kept(tmp_path):
    assert CachedSignals(RandomSignals(3), str(tmp_path)).features([]).shape == (0, 3)
    assert not list(tmp_path.iterdir())


def test_two_processes_take_turns(tmp_path):
    """The second waits for the first, and then reads what it wrote."""
    started, source = threading.Event(), Streaming()

    class Slow(Streaming):
        def stream(self, prompts):
            started.set()
            time.sleep(0.5)  # the other one comes meanwhile
            yield from super().stream(prompts)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(CachedSignals(Slow(), str(tmp_path)).features, pool())
        assert started.wait(10)
        second = CachedSignals(source, str(tmp_path)).features(pool())
        assert bits(first.result()) == bits(second) and source.asked == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside threads
def test_a_process_that_is_killed_leaves_its_shards_and_no_lock(tmp_path):
    """With SIGKILL, in the middle of things: what was written is used, and the rest asked for."""
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(str(tmp_path),))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    source = Streaming()
    np.testing.assert_array_equal(
        dense(CachedSignals(source, str(tmp_path)).features(pool())), dense(source.features(pool()))
    )
    assert source.asked == [400]


def _killed(folder: str) -> None:
    class Killed(Streaming):
        def stream(self, prompts):
            for part, found in enumerate(super().stream(prompts)):
                if part == 8:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield found

    CachedSignals(Killed(), folder).features(pool())


def test_groups_are_cut_by_prompts_or_by_seconds():
    rows = random_array((10, 4), density=0.5, rng=0, format="csr")
    parts = [(np.array([i]), csr_array(rows[[i]])) for i in range(10)]
    assert [positions.tolist() for positions, _ in grouped(iter(parts), prompts=4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert len(list(grouped(iter(parts), seconds=0.0))) == 10
    np.testing.assert_array_equal(
        np.concatenate([part.toarray() for _, part in grouped(iter(parts), prompts=4)]), rows.toarray()
    )


def test_real_features_come_back_whole(tiny, tmp_path):
    signals = SAESignals(tiny.model, tiny.sae, token_budget=200)
    cached = CachedSignals(signals, str(tmp_path))
    first = cached.features(pool(40))
    np.testing.assert_allclose(first.toarray(), signals.features(pool(40)).toarray(), rtol=1e-4, atol=1e-5)
    assert bits(cached.features(pool(40))) == bits(first)


def test_shuffled_rows_are_read_once_for_all_seeds(tmp_path):
    """Each seed's shuffle was cached by itself, so that five seeds of a study read the pool five times."""
    prompts, inner = pool(120), Streaming()
    plain = inner.features(prompts).toarray()
    for seed in (0, 1, 2):
        rows = cached(ShuffledSignals(inner, seed), str(tmp_path)).features(prompts).toarray()
        assert (rows == ShuffledSignals(Streaming(), seed).features(prompts).toarray()).all()
        assert not (rows == plain).all()
    assert sum(inner.asked) == 120
    assert (cached(inner, str(tmp_path)).features(prompts).toarray() == plain).all()
    assert sum(inner.asked) == 120
