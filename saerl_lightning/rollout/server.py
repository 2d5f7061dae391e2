"""ServerEngine: samples with vLLM servers over HTTP, on this machine or others, and sends them the policy's weights."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.policy.weights import base_weights
from saerl_lightning.ranges import Count, CountFrom0, Deadline, Range, require_in_range
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.completion import Reader, check_lengths, end_ids, pack_rollouts
from saerl_lightning.rollout.decoding import prompt_seeds
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.serving.command import ServerNeeds, ServerOptions
from saerl_lightning.rollout.serving.connection import VLLMServer, api_key, require_urls
from saerl_lightning.rollout.serving.fitness import require_fit
from saerl_lightning.rollout.serving.fleet import Fleet
from saerl_lightning.rollout.serving.processes import ServerProcesses
from saerl_lightning.rollout.serving.ranks import Ranks
from saerl_lightning.rollout.serving.weights_version import Claim
from saerl_lightning.rollout.transfer.file_transfer import FileTransfer
from saerl_lightning.rollout.transfer.transfer import WeightTransfer, synchronise
from saerl_lightning.rollout.vllm import adapter_rank, compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Concurrency = Annotated[int, Range(1, 4096)]


class ServerEngine(RolloutEngine):
    """Samples with one or several vLLM servers, which have their own GPUs. Every training process asks for its own share.

    Prompt i goes to server (i + rank) modulo their number, as one request for the whole group. A server that dies, hangs
    or fails a sync is given up, and its prompts go to the others; the run stops when none is left. `saerl serve` starts
    servers with the flags that a run needs, and a run refuses others.

    Whoever reaches a server's port can change its weights, whatever the API key: keep servers on loopback or in a network
    of your own.

    Args:
        urls: Addresses of the servers; each run has servers of its own.
        launch: Whether the run starts the servers itself, on this machine, and ends them with the run.
        server: Options of the servers that `saerl serve` and `launch` start.
        transfer: How the policy's weights get to the servers; null takes FileTransfer.
        dtype: Floating-point type of the servers' weights: float32, bfloat16, float16; auto takes the type that the
            policy computes in: bfloat16 under trainer.precision bf16-mixed, else the type of the policy's weights.
        concurrency: Largest number of prompts that a training process asks for at a time.
        timeout_s: Largest time of one request in seconds, waiting in the server's queue included; a server that overruns
            it is given up.
        retries: Largest number of repetitions of a request that failed at a server which is still well.
        part_rows: Number of completions that are handed to the graders at a time, while others are still sampled;
            groups stay whole.
        api_key_env: Name of the environment variable that holds the servers' API key; null sends no key. The key itself
            is written nowhere.
        trust_remote_code: Whether code in the model folder may run in the servers that are started.
        adapters: Whether only the adapters of a LoRA policy, a few megabytes, are sent after the first sync, if the
            transfer can; false sends the merged weights.
    """

    def __init__(
        self,
        urls: list[str] = ["http://127.0.0.1:8000"],  # noqa: B006  # copied
        launch: bool = False,
        server: ServerOptions = ServerOptions(),  # noqa: B008  # frozen
        transfer: WeightTransfer | None = None,
        dtype: str = "auto",
        concurrency: Concurrency = 64,
        timeout_s: Deadline = 600.0,
        retries: CountFrom0 = 2,
        part_rows: Count = 32,
        api_key_env: str | None = None,
        trust_remote_code: bool = False,
        adapters: bool = True,
    ) -> None:
        self.urls = require_urls(urls)
        self.launch = launch
        self.server = server
        self.transfer = transfer or FileTransfer()
        self.dtype = dtype
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.retries = retries
        self.part_rows = part_rows
        self.api_key_env = api_key_env
        self.trust_remote_code = trust_remote_code
        self.adapters = adapters
        self._rank = 0  # of the adapters that are sent alone; 0 if none are
        self._base: PreTrainedModel | None = None  # whose weights the servers still need before the adapters
        self._fleet: Fleet | None = None
        self._reader: Reader | None = None
        self._processes = ServerProcesses()
        self._ranks = Ranks(0, 1)
        self._claim = Claim.of_this_process()
        self._sent = False  # whether the servers have this run's name
        self._ends: list[int] = []
        self._max_model_len = 0
        self._weights_dtype = torch.float32
        self._version = 0
        self._calls = itertools.count()
        require_in_range(self)

    def check(self) -> None:
        """Refuses a missing key, and servers that are to be started on another machine, or without vLLM."""
        api_key(self.api_key_env)
        if not self.launch:
            return
        if importlib.util.find_spec("vllm") is None:
            raise InputError("engine.launch needs vllm, which is not installed here; start the servers where it is")
        if far := [each.url for each in self.servers() if not each.is_near]:
            raise InputError(
                f"engine.launch starts servers on this machine, and {far[0]} is another; start it there (`serve` with "
                "--print_commands true has the command), and write engine.launch: false"
            )
        if not self.server.on_cpu and self.server.devices is None:
            raise InputError(
                "engine.launch needs engine.server.devices, the GPUs of the servers, as [1]: the trainer must not use them "
                "(trainer.devices)"
            )

    @property
    def concurrent(self) -> bool:
        """Whether it samples while the policy is trained: the servers have weights and devices of their own."""
        return True

    def servers(self) -> list[VLLMServer]:
        """The servers, not asked yet."""
        return [VLLMServer(url) for url in self.urls]

    def needs(self, model: str, dtype: torch.dtype, max_model_len: int, rank: int = 0) -> ServerNeeds:
        """What a run needs of its servers.

        Args:
            model: Folder or hub name of the policy.
            dtype: Type that the policy computes in.
            max_model_len: Largest number of tokens of a row.
            rank: Rank of the policy's LoRA adapters; 0 if it has none.
        """
        alone = rank if self.adapters and self.transfer.sends_adapters else 0
        name = str(dtype).removeprefix("torch.") if self.dtype == "auto" else self.dtype
        return ServerNeeds(
            model, name, max_model_len, self.trust_remote_code, self.transfer.server_flags(), self.api_key_env, alone
        )

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Checks the servers, and starts them first if `launch` is true. All training processes call it.

        Raises:
            InputError: if a server can't be reached or is not what the run needs, with the command that starts a right
                one.
        """
        self.close()
        self.check()
        self._max_model_len, self._ends = max_model_len, end_ids(model, tokenizer)
        self._reader, self._ranks = Reader(tokenizer, self._ends), Ranks.present()
        needs = self.needs(str(model.name_or_path), compute_dtype(model), max_model_len, adapter_rank(model))
        self._rank, self._base = needs.adapter_rank, model
        self._weights_dtype = getattr(torch, needs.dtype)
        fleet = Fleet(self.servers(), api_key(self.api_key_env), self.concurrency, self.timeout_s, self.retries)
        self._fleet = fleet

        def prepare() -> tuple[list[str], Claim]:
            if self.launch:
                self._processes.start(fleet, needs, self.server)
            settings = require_fit(fleet, needs, self.server)
            self.transfer.check(fleet, settings)
            return [each.model for each in fleet.servers], Claim.of_this_process()

        try:
            names, self._claim = self._ranks.by_first(prepare)
        except BaseException:  # also Ctrl-C
            self.close()
            raise
        for server, name in zip(fleet.servers, names, strict=True):
            server.model = name

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Samples `sampling.group_size` completions for each prompt.

        Raises:
            RunStopped: if no server is left, or a server has weights that this run did not send.
        """
        return Rollouts.join(list(self.stream(prompt_ids, sampling)))

    def stream(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Rollouts]:
        """Yields rollouts in the order of the prompts, in parts of about `part_rows` rows, each as soon as it is there."""
        fleet, reader = self._started()
        check_lengths(prompt_ids, sampling, self._max_model_len)
        seeds = prompt_seeds(sampling, len(prompt_ids))
        call = f"{self._claim.holder.token}-{self._ranks.rank}-{next(self._calls)}"
        bodies = [
            {
                "request_id": f"{call}-{i}",
                "token_ids": list(ids),
                "sampling_params": sampling_params(sampling, seed, self._ends),
            }
            for i, (ids, seed) in enumerate(zip(prompt_ids, seeds, strict=True))
        ]
        return self._parts(fleet, reader, prompt_ids, bodies, sampling)

    def _parts(
        self,
        fleet: Fleet,
        reader: Reader,
        prompt_ids: Sequence[Sequence[int]],
        bodies: list[dict[str, Any]],
        sampling: Sampling,
    ) -> Iterator[Rollouts]:
        # Greedy completions of one prompt are equal, so only one is generated, and it is repeated.
        copies = sampling.group_size if sampling.temperature == 0 else 1
        size = max(1, self.part_rows // sampling.group_size)
        pending = fleet.ask(bodies, self._ranks.rank, self._claim.version(self._version))
        try:
            for first in range(0, len(bodies), size):
                groups = [future.result() for future in pending[first : first + size]]
                completions = [c for group in groups for c in group.completions * copies]
                logprobs = [c for group in groups for c in group.logprobs * copies]
                truncated = [c for group in groups for c in group.truncated * copies]
                asked = prompt_ids[first : first + size]
                yield pack_rollouts(reader, asked, completions, logprobs, truncated, self._version)
        finally:
            for future in pending:
                future.cancel()

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sends the full state dict to all servers. All training processes call it, and iterate the tensors.

        Args:
            named_tensors: Names and tensors of `state_dict()`, the tied output head among them: without it vLLM would
                keep its old head.
            version: Number that the next rollouts report as `weight_version`.

        Raises:
            RunStopped: on every process, if no server has taken the weights.
        """
        fleet, _ = self._started()
        cast = (
            (name, tensor.to(self._weights_dtype) if tensor.is_floating_point() else tensor)
            for name, tensor in named_tensors
        )

        # Each tensor of a sharded policy is gathered by all processes.
        self._synchronise(lambda: self.transfer.send(cast, fleet), version, lambda: _exhaust(cast))

    @property
    def takes_adapters(self) -> bool:
        """Whether the policy has adapters, `adapters` is true, and the transfer sends them alone."""
        return self._rank > 0

    def load_adapters(self, folder: Path, version: int) -> None:
        """Sends the adapters to all servers; the first time after the weights that they are for.

        Raises:
            RunStopped: on every process, if no server has taken them.
        """
        fleet, _ = self._started()
        if self._base is not None:
            base, self._base = self._base, None
            self.load_weights(base_weights(base), version)
        name = f"policy-{self._claim.holder.token}-{version}"
        self._synchronise(lambda: self.transfer.send_adapters(folder, name, fleet), version)
        for server in fleet.servers:
            server.adapters = name

    def _synchronise(
        self, send: Callable[[], None], version: int, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Lets the first process send something to all servers, and gives up the servers that any process has given up."""
        fleet, _ = self._started()
        # Also waits for all processes: a paused server would keep the prompts of one that still samples for later weights.
        self._share_given_up(self._ranks.gather([each.given_up for each in fleet.servers]))

        def sent() -> list[str]:
            self._sent = True
            try:
                synchronise(send, fleet, self._claim.version(version))
            finally:
                meanwhile()
            fleet.require_any()
            return [each.given_up for each in fleet.servers]

        self._share_given_up([self._ranks.by_first(sent, meanwhile)])
        self._version = version

    def _share_given_up(self, reasons: Sequence[Sequence[str]]) -> None:
        """Gives up the servers that any process has given up."""
        fleet, _ = self._started()
        for each in reasons:
            for server, why in zip(fleet.servers, each, strict=True):
                if why:
                    fleet.give_up(server, why)

    def close(self) -> None:
        """Lets the servers go, so that another run may have them, and ends those that were started."""
        fleet, self._fleet, self._reader, self._base = self._fleet, None, None, None
        if fleet is not None:
            if self._sent:
                fleet.release()
            fleet.close()
        self._sent = False
        self.transfer.close()
        self._processes.close()

    def _started(self) -> tuple[Fleet, Reader]:
        if self._fleet is None or self._reader is None:
            raise RuntimeError("ServerEngine was used before start, or after close")
        return self._fleet, self._reader


def sampling_params(sampling: Sampling, seed: int, ends: Sequence[int]) -> dict[str, Any]:
    """Sampling settings of a prompt, as vLLM reads them."""
    return {
        "n": 1 if sampling.temperature == 0 else sampling.group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
        "stop": list(sampling.stop),
        "stop_token_ids": list(ends),
        "logprobs": 0,  # of the sampled token, no alternatives
        "detokenize": bool(sampling.stop),
        "skip_special_tokens": False,  # a stop text may be a special token
    }


def _exhaust(tensors: Iterable[object]) -> None:
    for _ in tensors:
        pass
