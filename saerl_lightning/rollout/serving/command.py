"""Command and environment that start a vLLM server for a run: its model, dtype and context, and the routes of a trainer."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, Deadline, Positive, PositiveShare, Range, require_in_range
from saerl_lightning.rollout.serving.connection import VLLMServer
from saerl_lightning.rollout.vllm import CPU_CACHE_GB, FULL_TAILS, allowed_rank, whole_prefills

Parallel = Annotated[int, Range(1, 1024)]
NAME = "policy"  # of the model, for requests
ADAPTER_ROUTES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"  # environment variable that opens the routes for adapters


@dataclass(frozen=True)
class ServerOptions:
    """Options of the servers that `saerl serve` and `launch` start.

    Args:
        tensor_parallel: Number of GPUs that the weights of one copy of the model are split over.
        data_parallel: Number of copies of the model behind one address.
        devices: Numbers of the GPUs for all servers, in order; each server takes tensor_parallel x data_parallel of
            them. null takes those that are visible.
        gpu_memory_utilization: Share of a GPU's memory that a server may use.
        max_num_seqs: Largest number of completions that a server decodes at once; at least the group size.
        kv_cache_gb: Size of the key-value cache in GiB; null takes what gpu_memory_utilization leaves, on a CPU 1 GiB.
        enforce_eager: Whether vLLM neither compiles the model nor captures CUDA graphs.
        flags: Further flags of vLLM, as a list: [--seed, "1"].
        device: Kind of the servers' machine, cuda or cpu; auto takes that of this machine.
        start_s: Largest time until a started server answers, in seconds.
        logs: Folder for the servers' logs, a file a port.
    """

    tensor_parallel: Parallel = 1
    data_parallel: Parallel = 1
    devices: list[CountFrom0] | None = None
    gpu_memory_utilization: PositiveShare = 0.9
    max_num_seqs: Count = 256
    kv_cache_gb: Positive | None = None
    enforce_eager: bool = False
    flags: list[str] = field(default_factory=list)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    start_s: Deadline = 900.0
    logs: str = "runs/servers"

    def __post_init__(self) -> None:
        """Refuses numbers that are out of range."""
        require_in_range(self)

    @property
    def on_cpu(self) -> bool:
        """Whether the servers compute on a CPU."""
        import torch

        return self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available())


@dataclass(frozen=True)
class ServerNeeds:
    """What a run needs of a server.

    Args:
        model: Folder or hub name of the policy.
        dtype: Floating-point type of the weights, as in "float32".
        max_model_len: Largest number of tokens of a row.
        trust_remote_code: Whether code in the model folder may run.
        transfer_flags: Flags that the weight transfer needs.
        api_key_env: Environment variable that holds the API key; null starts a server without one.
        adapter_rank: Rank of the LoRA adapters that it gets; 0 if it gets none.
    """

    model: str
    dtype: str
    max_model_len: int
    trust_remote_code: bool = False
    transfer_flags: tuple[str, ...] = ()
    api_key_env: str | None = None
    adapter_rank: int = 0


@dataclass(frozen=True)
class ServerCommand:
    """A command with the environment variables that it needs.

    Args:
        environment: Environment variables that it sets.
        arguments: Program and arguments.
        key_name: Environment variable that holds the API key; null if there is none.
    """

    environment: dict[str, str]
    arguments: list[str]
    key_name: str | None = None

    def __str__(self) -> str:
        """The command for a shell, on one line; the key itself is not in it."""
        key = [f'VLLM_API_KEY="${self.key_name}"'] if self.key_name else []
        return " ".join(
            [*key, *(f"{k}={shlex.quote(v)}" for k, v in self.environment.items()), shlex.join(self.arguments)]
        )

    def whole_environment(self) -> dict[str, str]:
        """Environment of the process: that of this one, and the command's own."""
        key = {"VLLM_API_KEY": os.environ[self.key_name]} if self.key_name else {}
        return {**os.environ, **self.environment, **key}


def server_command(server: VLLMServer, number: int, needs: ServerNeeds, options: ServerOptions) -> ServerCommand:
    """Makes the command that starts a server.

    Args:
        server: Server with the address that it listens at.
        number: Number of the server among all, from 0; decides which devices it takes.
        needs: What the run needs.
        options: Options of all servers.

    Raises:
        InputError: if the address has no port, or there are too few devices.
    """
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    model = str(Path(needs.model).absolute()) if Path(needs.model).is_dir() else needs.model
    arguments += ["--model", model, "--served-model-name", NAME]
    arguments += ["--host", server.host, "--port", str(server.port)]
    arguments += ["--dtype", needs.dtype, "--max-model-len", str(needs.max_model_len)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs)]
    # Of the distribution that is sampled, and no sampling defaults from the model folder.
    arguments += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enable-scale-out"]
    arguments += _compute(needs, options)
    for flag, value in (("tensor", options.tensor_parallel), ("data", options.data_parallel)):
        arguments += [f"--{flag}-parallel-size", str(value)] if value > 1 else []
    arguments += ["--trust-remote-code"] if needs.trust_remote_code else []
    environment = {"VLLM_SERVER_DEV_MODE": "1"}  # the routes that pause a server and give it weights
    if needs.adapter_rank:
        arguments += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(allowed_rank(needs.adapter_rank))]
        environment[ADAPTER_ROUTES] = "1"
    arguments += [*needs.transfer_flags, *options.flags]
    if options.on_cpu:
        # vLLM would bind its threads to cores that others use too; no warm-up.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
    if options.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _devices(options, options.devices, number)))
    return ServerCommand(environment, arguments, needs.api_key_env)


def _compute(needs: ServerNeeds, options: ServerOptions) -> Sequence[str]:
    """Flags that depend on the device: memory, and what makes samples exact."""
    cache_gb = CPU_CACHE_GB if options.on_cpu and options.kv_cache_gb is None else options.kv_cache_gb
    flags = [] if cache_gb is None else ["--kv-cache-memory-bytes", str(int(cache_gb * 2**30))]
    if not options.on_cpu:
        flags += ["--gpu-memory-utilization", f"{options.gpu_memory_utilization:g}"]
        flags += [f"--{name.replace('_', '-')}" for name in FULL_TAILS]
        return [*flags, *(["--enforce-eager"] if options.enforce_eager else [])]
    whole = whole_prefills(needs.max_model_len, options.max_num_seqs)
    budget = ["--max-num-batched-tokens", str(whole["max_num_batched_tokens"])]
    return [*flags, "--enforce-eager", "--no-enable-chunked-prefill", *budget]


def _devices(options: ServerOptions, devices: Sequence[int], number: int) -> Sequence[int]:
    size = options.tensor_parallel * options.data_parallel
    taken = devices[number * size : (number + 1) * size]
    if len(taken) < size:
        raise InputError(
            f"engine.server.devices names {len(devices)} GPUs, and server {number + 1} needs {size} more than the servers "
            "before it; name more, or write fewer urls"
        )
    return taken
