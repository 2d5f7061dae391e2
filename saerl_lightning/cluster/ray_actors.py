"""Ray actors that work through blocks of bulk work. Ray is imported when it is used, and is an optional package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError, RunStopped, first_line
from saerl_lightning.ranges import NotNegative, Workers, require_in_range

AHEAD = 2  # blocks that an actor has in hand, so that it need not wait for the next one
DEATHS = 3  # times that a block is given to an actor again after one died of it
STORE = 512 * 2**20  # bytes of shared memory for blocks and rows on this machine; Ray would take a third of the memory

Work = Callable[[Any], Any]


@dataclass(frozen=True)
class RayActors:
    """Actors of a Ray cluster, and what is reserved for each.

    An actor that dies is started again, and its blocks are computed again.

    Args:
        count: Number of actors.
        cpus: Number of CPUs reserved for each actor.
        gpus: Number of GPUs reserved for each actor; a fraction shares one.
    """

    count: Workers
    cpus: NotNegative = 1.0
    gpus: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Refuses numbers that are out of range."""
        require_in_range(self)

    def map(self, make: Callable[[], Work], blocks: Iterable[Any], said: str) -> Iterator[tuple[int, Any]]:
        """Yields each block's number and result as it is done. Blocks are taken as actors become free.

        Args:
            make: Function that an actor calls once, and which returns the function of a block; it loads what is large.
            blocks: Blocks of work; each is pickled.
            said: Name of the setting that asks for the actors, which begins a refusal.

        Raises:
            InputError: if the cluster has too little room, or an actor refuses its input.
            RunStopped: if a block kills every actor that it is given to.
        """
        with connected() as ray:
            self.require_room(ray, said)
            kind = ray.remote(
                num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=-1, max_task_retries=DEATHS, max_concurrency=1
            )(BlockWorker)
            actors = [kind.remote(make, str(Path.cwd())) for _ in range(self.count)]
            try:
                yield from _results(ray, actors, blocks)
            finally:
                for actor in actors:
                    ray.kill(actor)

    def require_room(self, ray: Any, said: str) -> None:
        """Refuses more actors than the cluster can hold. Ray would wait for ever, without a message.

        Raises:
            InputError: with the number that there is room for.
        """
        room = room_for(ray, self.cpus, self.gpus)
        if room < self.count:
            held = ray.cluster_resources()
            raise InputError(
                f"{said} is {self.count}, with {self.cpus:g} CPUs and {self.gpus:g} GPUs for each, and the Ray cluster of "
                f"{held.get('CPU', 0):g} CPUs and {held.get('GPU', 0):g} GPUs has room for {room}; "
                f"write {f'{room}, or ' if room else ''}fewer CPUs or GPUs for each (0.5 is allowed)"
            )


class BlockWorker:
    """What runs in an actor: makes the function of a block with the first block, and calls it with each.

    Args:
        make: Function that makes it.
        folder: Working folder of the driver, on a file system that all machines share.
    """

    def __init__(self, make: Callable[[], Work], folder: str) -> None:
        self.make = make
        self.folder = folder
        self.work: Work | None = None

    def do(self, block: Any) -> Any:
        """Computes a block."""
        if self.work is None:
            if not Path(self.folder).is_dir():
                raise InputError(f"the folder '{self.folder}' is missing on a machine of the Ray cluster; share it")
            # Relative paths of models and files mean the same in every process.
            os.chdir(self.folder)
            self.work = self.make()
        return self.work(block)


def _results(ray: Any, actors: list[Any], blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    left, running = iter(enumerate(blocks)), {}

    def give(actor: Any) -> None:
        # Only blocks in hand are in memory.
        for number, block in left:
            running[actor.do.remote(block)] = number, actor
            return

    for actor in actors * AHEAD:
        give(actor)
    while running:
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(done)
        result = _result(ray, done, number)
        give(actor)
        yield number, result


def _result(ray: Any, done: Any, number: int) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(cause := error.cause, InputError | RunStopped):
            raise type(cause)(str(cause)) from None
        raise
    except ray.exceptions.RayActorError as error:
        raise RunStopped(
            f"block {number} was given to a Ray actor {1 + DEATHS} times, and each died: {first_line(error)}; give actors "
            "more memory (fewer of them, smaller blocks), and call again: finished blocks are kept where there is a cache"
        ) from error


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine; ends what it began.

    Raises:
        InputError: if Ray is not installed.
    """
    ray = imported()
    begun = ray.is_initialized()
    if not begun:
        start(ray)
    try:
        yield ray
    finally:
        if not begun:
            ray.shutdown()


def start(ray: Any) -> None:
    """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=STORE)


def imported() -> Any:
    """Imports Ray, which then reports nothing about its use to its makers unless told to.

    Raises:
        InputError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Said explicitly, because Ray warns that its default will change: without a GPU reserved, an actor sees none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("this needs Ray, which is not installed; pip install 'saerl-lightning[ray]'") from error
    return ray


def room_for(ray: Any, cpus: float, gpus: float) -> int:
    """Counts the tasks of so many CPUs and GPUs that the cluster's machines can hold at a time, if nothing else runs."""
    asked = {"CPU": cpus, "GPU": gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min((int(held.get(name, 0) / each) for name, each in asked.items() if each), default=1024) for held in machines
    )
