"""Bulk work over a real Ray on this machine: equal to one process, killed actors lose nothing, too many are refused."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.cluster import ray_actors
from saerl_lightning.cluster.ray_actors import RayActors
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import CachedSignals
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.random_signals import RandomSignals, ShuffledSignals
from saerl_lightning.signals.ray_signals import RaySignals
from saerl_lightning.signals.text import LengthSignals, TextSignals
from saerl_lightning.study.processes import RayExecutor
from tests.cli.conftest import door as door
from tests.cli.conftest import policy as policy
from tests.cli.conftest import workplace as workplace
from tests.cluster.sources import Deadly, Refusing, Slow

pytest.importorskip("ray")


def pool(count: int = 40) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"What is {i} + {i * 7 % 5}?", str(i)) for i in range(count)]


@pytest.fixture(scope="module")
def ray():
    """One Ray of two CPUs and little shared memory for all tests here."""
    ray = ray_actors.imported()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("inner", [TextSignals(), ShuffledSignals(RandomSignals())])
def test_rows_that_depend_on_the_pool_are_refused(inner):
    with pytest.raises(InputError, match=f"RaySignals.inner is {type(inner).__name__}, whose rows .* whole pool"):
        RaySignals(inner)


def test_components_are_refused_and_a_cache_is_taken_off():
    with pytest.raises(InputError, match="without its `components`"):
        RaySignals(HiddenSignals(ReadModel("anywhere"), components=3))
    inner = LengthSignals()
    assert RaySignals(CachedSignals(inner)).inner is inner


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray, which is not installed; pip install 'saerl-lightning\[ray\]'"):
        RaySignals(LengthSignals()).features(pool(3))


@pytest.mark.slow
def test_rows_are_those_of_the_inner_source(ray, tmp_path):
    build_tiny_policy(str(tmp_path / "reader"), ["What is one plus two?"], hidden_size=64, layers=4)
    hidden = HiddenSignals(ReadModel(str(tmp_path / "reader"), device="cpu"))
    # Both CPUs are asked for: nothing beside the actors needs one.
    rows = RaySignals(hidden, actors=2, block=11).features(pool())
    np.testing.assert_allclose(rows, hidden.features(pool()), 1e-5, 1e-6)


@pytest.mark.slow
def test_a_second_call_computes_nothing_with_or_without_ray(ray, tmp_path, monkeypatch):
    over = RaySignals(LengthSignals(), block=9)
    assert over.fingerprint(pool()) == LengthSignals().fingerprint(pool())
    first = CachedSignals(over, str(tmp_path)).features(pool())
    np.testing.assert_array_equal(first, LengthSignals().features(pool()))
    monkeypatch.setattr(LengthSignals, "features", None)
    monkeypatch.setattr(RayActors, "map", None)
    for source in (over, LengthSignals()):
        np.testing.assert_array_equal(CachedSignals(source, str(tmp_path)).features(pool()[::-1]), first[::-1])


@pytest.mark.slow
def test_a_killed_actor_loses_nothing(ray, tmp_path):
    killed = []

    def kill():
        while not (begun := list(tmp_path.iterdir())):
            time.sleep(0.05)
        time.sleep(0.5)  # amid its block
        killed.append(int(begun[0].name))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    rows = RaySignals(Slow(str(tmp_path), 1.0), actors=1, block=10).features(pool())
    assert killed and killed[0] not in rows[:, 1]
    assert rows[:, 0].tolist() == list(range(40))
    assert len(set(rows[:, 1])) == 1  # the same actor, started again


@pytest.mark.slow
def test_a_block_that_kills_its_actor_each_time_is_named(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_actors, "DEATHS", 1)
    with pytest.raises(RunStopped, match="block 0 was given to a Ray actor 2 times, and each died"):
        RaySignals(Deadly(str(tmp_path), 0), block=50).features(pool())


@pytest.mark.slow
def test_what_an_actor_refuses_is_refused_in_one_line(ray, tmp_path):
    with pytest.raises(InputError, match=r"^the features of prompt 'p3' are NaN; take it out$"):
        RaySignals(Refusing(str(tmp_path), 0)).features(pool())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (dict(actors=3), r"RaySignals\.actors is 3, with 1 CPUs and 0 GPUs for each, .* has room for 2; write 2, or"),
        (dict(actors=2, cpus=2.0), "has room for 1; write 1, or fewer CPUs"),
        (dict(actors=1, gpus=1.0), "of 2 CPUs and 0 GPUs has room for 0; write fewer CPUs or GPUs"),
    ],
)
def test_more_than_the_cluster_holds_is_refused_and_does_not_hang(ray, asked, said):
    began = time.monotonic()
    with pytest.raises(InputError, match=said):
        RaySignals(LengthSignals(), block=1, **asked).features(pool())
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_study_runs_as_tasks_and_too_many_jobs_are_refused(ray, tmp_path):
    with pytest.raises(
        InputError, match=r"--jobs 1 with --gpus 1 for each .* has room for, which is 0; write --gpus 0"
    ):
        RayExecutor(1).check(1)
    executor = RayExecutor(0)
    executor.check(2)
    code = "import os, sys; print(os.environ['ARM'], os.getcwd()); sys.exit(7)"
    assert executor.run([sys.executable, "-c", code], {"ARM": "a1"}, tmp_path / "deep" / "log.txt") == 7
    assert (tmp_path / "deep" / "log.txt").read_text() == f"a1 {Path.cwd()}\n"
    marker = tmp_path / "pid"
    code = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    ended = []
    waits = threading.Thread(
        target=lambda: ended.append(executor.run([sys.executable, "-c", code], {}, tmp_path / "l"))
    )
    waits.start()
    while not (marker.exists() and marker.read_text()):
        time.sleep(0.05)
    executor.stop()
    waits.join(30)
    assert ended == [-signal.SIGKILL]
    for _ in range(100):  # its command line ended with it
        if not Path("/proc", marker.read_text()).exists():
            break
        time.sleep(0.1)
    assert not Path("/proc", marker.read_text()).exists()


@pytest.mark.slow
def test_labels_of_actors_are_those_of_one_process(ray, workplace, door):
    def labelled(name: str, *flags: str) -> tuple[str, dict]:
        out = workplace.folder / name
        small = [f"--out={out}", "--prompts=7", "--samples=6", "--seed=3", "--data.val_batch_size=2", *flags]
        ended = door(workplace.command("label", *small))
        assert ended.code == 0, ended.stderr
        first, *rest = out.read_text().splitlines()
        return first, {each["uid"]: each for each in map(json.loads, rest)}

    alone = labelled("alone.jsonl")
    assert len(alone[1]) == 7
    kept = (workplace.folder / "alone.jsonl").read_text().splitlines(keepends=True)
    (workplace.folder / "part.jsonl").write_text("".join(kept[:3]))
    assert labelled("part.jsonl", "--actors=2") == alone
    assert labelled("part.jsonl") == alone  # nothing is left to measure
