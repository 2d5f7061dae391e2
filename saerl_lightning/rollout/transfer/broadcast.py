"""Broadcast transfers: weights over a process group of trainer and servers, by vLLM's own protocol of weight updates."""

from __future__ import annotations

import socket
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from saerl_lightning.errors import InputError, first_line
from saerl_lightning.ranges import Deadline, Positive, Range, require_in_range
from saerl_lightning.rollout.serving.connection import VLLMServer
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.transfer.file_transfer import WORKER
from saerl_lightning.rollout.transfer.transfer import WeightTransfer

Result = TypeVar("Result")
Port = Annotated[int, Range(0, 65535)]
STORE = "weights"  # prefix of the group's keys


class BroadcastTransfer(WeightTransfer):
    """Sends the weights over a process group that the trainer (rank 0) and the servers' workers form.

    A group can't lose a member: if a server fails while the weights are sent, all are given up.

    Args:
        address: Address of this machine under which the servers reach it.
        port: Port where the group meets; 0 takes a free one.
        time_limit_s: Largest time for meeting, and for sending the weights once, in seconds; the run stops where it is
            overrun.
        chunk_gb: Size of the tensors that are announced to the servers at a time, in GiB.
    """

    backend = ""  # name that vLLM knows the transfer by

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: Port = 0,
        time_limit_s: Deadline = 600.0,
        chunk_gb: Positive = 1.0,
    ) -> None:
        self.address = address
        self.port = port
        self.time_limit_s = time_limit_s
        self.chunk_gb = chunk_gb
        self._members: list[VLLMServer] = []
        self._group: Any = None  # torch's ProcessGroupGloo, or vLLM's PyNcclCommunicator
        require_in_range(self)

    def server_flags(self) -> tuple[str, ...]:
        """The transfer's name."""
        return ("--weight-transfer-config", f'{{"backend":"{self.backend}"}}')

    def check(self, fleet: Fleet, settings: dict[VLLMServer, dict[str, Any]]) -> None:
        """Refuses servers that were started for another transfer.

        Raises:
            InputError: with the flag.
        """
        for server in fleet.alive:
            found = settings[server]["weight_transfer_config"]
            if not found or found["backend"] != self.backend:
                raise InputError(
                    f"the server {server.url} takes weights by {found['backend'] if found else 'files only'}, and "
                    f"engine.transfer is {type(self).__name__}; start it with {' '.join(self.server_flags())}"
                )

    def send(self, named_tensors: Iterable[tuple[str, Tensor]], fleet: Fleet) -> None:
        """Announces the tensors chunk by chunk, and broadcasts each."""
        try:
            if self._members != fleet.alive:
                self._meet(fleet)
            self._all_of(fleet, "/start_weight_update")
            for chunk in _chunks(named_tensors, int(self.chunk_gb * 2**30)):
                self._send(chunk, fleet)
            self._all_of(fleet, "/finish_weight_update", {})
        except BrokenGroup as broken:
            self._members = []
            for server in fleet.alive:
                fleet.give_up(server, f"did not get its weights: {broken}")

    def _meet(self, fleet: Fleet) -> None:
        """Forms the group; every server's workers have ranks behind those of the servers before it."""
        sizes = {s: a["world_size"] for s, a in fleet.each("/get_world_size", method="GET").items()}
        ranks = dict(zip(sizes, (1 + sum(list(sizes.values())[:i]) for i in range(len(sizes))), strict=True))
        world, port = 1 + sum(sizes.values()), self.port or _free_port(self.address)

        def place(server: VLLMServer) -> dict[str, Any]:
            return {"init_info": self.init_info(port, ranks[server], world)}

        self._beside(fleet, "/init_weight_transfer_engine", place, lambda: self.join(port, world))
        self._members = fleet.alive

    def _send(self, chunk: list[tuple[str, Tensor]], fleet: Fleet) -> None:
        held = [tensor.detach().contiguous() for _, tensor in chunk]
        announced = {
            "names": [name for name, _ in chunk],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in held],
            "shapes": [list(tensor.shape) for tensor in held],
        }
        self._beside(fleet, "/update_weights", {"update_info": announced}, lambda: self.broadcast(held))

    def _beside(self, fleet: Fleet, path: str, body: Any, work: Callable[[], None]) -> None:
        """Sends a request to all servers, and does this side's part of it meanwhile, within the time limit.

        A collective can't be given up: the thread that is in it is left behind, and ends with the process.
        """
        members = fleet.alive
        asked = fleet.begin(fleet.answers(path, body))
        done = _in_a_thread(work)
        # An error of a server is seen at once: the collective would wait for it.
        asked.add_done_callback(lambda _: None if fleet.alive == members else _cancel(done))
        try:
            done.result(self.time_limit_s)
            asked.result(self.time_limit_s)
        except LateError as error:
            raise BrokenGroup(
                f"{path} took longer than {self.time_limit_s:g} s (engine.transfer.time_limit_s)"
            ) from error
        except Exception as error:
            raise BrokenGroup(f"{path}: {first_line(error)}") from error
        if fleet.alive != members:
            raise BrokenGroup("another server failed meanwhile")

    def _all_of(self, fleet: Fleet, path: str, body: Any = None) -> None:
        fleet.each(path, body)
        if self._members != fleet.alive:
            raise BrokenGroup("another server failed meanwhile")

    def init_info(self, port: int, rank: int, world: int) -> dict[str, Any]:
        """What a server is told about the group."""
        return {"master_address": self.address, "master_port": port, "rank_offset": rank, "world_size": world}

    @abstractmethod
    def join(self, port: int, world: int) -> None:
        """Joins the group as its rank 0."""

    @abstractmethod
    def broadcast(self, tensors: list[Tensor]) -> None:
        """Broadcasts tensors to the group, one after the other."""

    def close(self) -> None:
        """Leaves the group."""
        self._members, self._group = [], None


class BrokenGroup(Exception):
    """A process group that can't be used any more."""


class GlooTransfer(BroadcastTransfer):
    """Sends the weights over the network by gloo, for servers on CPUs without a common folder.

    It speaks the protocol of NCCLTransfer, which tests on CPUs check by it. Servers must have this package.
    """

    backend = "gloo"

    def server_flags(self) -> tuple[str, ...]:
        """The transfer's name, and the worker that knows it."""
        return ("--worker-extension-cls", WORKER, *super().server_flags())

    def join(self, port: int, world: int) -> None:
        """Joins the group as its rank 0."""
        self._group = gloo_group(self.address, port, 0, world, self.time_limit_s, listens=True)

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Broadcasts tensors from the host's memory."""
        for tensor in tensors:
            gloo_broadcast(self._group, tensor.cpu())


class NCCLTransfer(BroadcastTransfer):
    """Sends the weights from GPU to GPU by NCCL, with vLLM's own code on both sides.

    It needs vllm beside the trainer, and a GPU for the trainer that no server uses. It has never run with GPUs: what was
    tested is the protocol, against vLLM on a CPU through GlooTransfer, which differs in `join` and `broadcast` alone.
    Tensors are sent one by one, not packed.
    """

    backend = "nccl"

    def init_info(self, port: int, rank: int, world: int) -> dict[str, Any]:
        """What a server is told about the group."""
        return {**super().init_info(port, rank, world), "packed": False}

    def join(self, port: int, world: int) -> None:
        """Joins the group as its rank 0, on the trainer's GPU."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self._device = torch.cuda.current_device()
        self._group = trainer_init({"master_address": self.address, "master_port": port, "world_size": world})

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Broadcasts tensors from the GPU, and waits until they are sent."""
        torch.cuda.set_device(self._device)  # of this thread
        for tensor in tensors:
            self._group.broadcast(tensor.to(self._device), src=0, stream=torch.cuda.current_stream())
        torch.cuda.current_stream().synchronize()


def gloo_group(address: str, port: int, rank: int, world: int, limit_s: float, listens: bool = False) -> Any:
    """Joins a process group of its own, beside that of torch.distributed.

    Args:
        address: Address where the group meets.
        port: Port where the group meets.
        rank: Number of this process.
        world: Number of processes.
        limit_s: Largest time of each operation.
        listens: Whether this process keeps the meeting place.
    """
    from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

    limit = timedelta(seconds=limit_s)
    store = TCPStore(address, port, world, is_master=listens, timeout=limit, wait_for_workers=False)
    return ProcessGroupGloo(PrefixStore(STORE, store), rank, world, limit)


def gloo_broadcast(group: Any, tensor: Tensor) -> None:
    """Broadcasts a tensor from rank 0, in place."""
    options = torch.distributed.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


def _chunks(named_tensors: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    chunk: list[tuple[str, Tensor]] = []
    held = 0
    for name, tensor in named_tensors:
        chunk.append((name, tensor))
        held += tensor.nbytes
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _in_a_thread(work: Callable[[], Result]) -> Future[Result]:
    """Runs a work in a daemon thread, which does not keep the process when it hangs."""
    done = Future[Result]()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return done


def _cancel(done: Future[Any]) -> None:
    if not done.done():
        done.set_exception(BrokenGroup("a server failed meanwhile"))


def _free_port(address: str) -> int:
    with socket.socket() as taken:
        taken.bind((address, 0))
        return taken.getsockname()[1]
