"""VLLMEngine: samples with vLLM in the trainer's process, on a GPU or CPU, and sends it the policy's weights.

With several training processes each has an engine of its own, on its own device, and samples its share of every batch.
There is no server and no tensor parallelism. Several processes were tried on a CPU alone, not on GPUs.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, Positive, PositiveShare, Range, require_in_range
from saerl_lightning.records import Rollouts, Sampling
from saerl_lightning.rollout.completion import Reader, check_lengths, end_ids, pack_rollouts
from saerl_lightning.rollout.decoding import prompt_seeds
from saerl_lightning.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch, and torch's threads, at the end of the block.

    vLLM seeds all of them when it starts, and on a CPU it replaces `torch.set_num_threads` by a function that does
    nothing. Its sampling uses torch's random state. Autocast is off inside the block, because vLLM has its own dtype.
    """
    python, legacy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global one
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    kinds = {"cpu", *(["cuda"] if torch.cuda.is_available() else [])}
    try:
        with ExitStack() as off:
            for kind in kinds:
                off.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)

    # vllm is not imported here: jsonargparse runs this block to read types, and importing vllm takes ten seconds.


SleepLevel = Annotated[int, Range(0, 2)]

CPU_CACHE_GB = 1.0
CPU_STEP_TOKENS = 4096  # vLLM's own limit of tokens a step on a CPU
# vLLM adds Gumbel noise to logits. On a GPU its float32 noise never exceeds 16.6, so tokens with a probability below about
# 1e-8 would never be sampled. Its CPU kernel does not need this setting.
FULL_TAILS = {"use_fp64_gumbel": True}


class VLLMEngine(RolloutEngine):
    """Samples with vLLM in the same process, which receives the policy's weights after every update.

    Args:
        dtype: Floating-point type of vLLM's weights: float32, bfloat16, float16; auto takes the type that the policy
            computes in: bfloat16 under trainer.precision bf16-mixed, else the type of the policy's weights.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may use for weights and cache together.
        enforce_eager: Whether vLLM neither compiles the model nor captures CUDA graphs: it starts faster and samples
            slower.
        max_num_seqs: Largest number of completions that are decoded at once.
        kv_cache_gb: Size of the key-value cache in GiB; null takes what gpu_memory_utilization leaves, on a CPU 1 GiB.
        sleep_level: Memory that vLLM frees while the policy is updated: 0 none, 1 the cache (weights move to the host),
            2 cache and weights. On a CPU always 0.
        trust_remote_code: Whether code in the model folder may run.
        adapters: Whether only the adapters of a LoRA policy, a few megabytes, are sent to vLLM; false sends the merged
            weights. At sleep_level 2 the base weights are freed, so merged weights are always sent.
    """

    def __init__(
        self,
        dtype: str = "auto",
        gpu_memory_utilization: PositiveShare = 0.5,
        enforce_eager: bool = False,
        max_num_seqs: Count = 256,
        kv_cache_gb: Positive | None = None,
        sleep_level: SleepLevel = 0,
        trust_remote_code: bool = False,
        adapters: bool = True,
    ) -> None:
        self.dtype = dtype
        self.gpu_memory_utilization = gpu_memory_utilization
        self.enforce_eager = enforce_eager
        self.max_num_seqs = max_num_seqs
        self.kv_cache_gb = kv_cache_gb
        self.sleep_level = sleep_level
        self.trust_remote_code = trust_remote_code
        self.adapters = adapters
        self._llm: Any = None  # vllm.LLM
        self._rank = 0  # of the adapters that vLLM adds; 0 where it adds none
        self._request: Any = None  # vllm's LoRARequest of the present adapters
        self._reader: Reader | None = None
        self._ends: list[int] = []
        self._max_model_len = 0
        self._weights_dtype = ""  # once it is started
        self._version = 0
        self._asleep: set[str] = set()
        self._several = False  # whether other processes train too
        require_in_range(self)

    def check(self) -> None:
        """Refuses a machine without vLLM."""
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "VLLMEngine needs vllm, which is not installed; write `pip install 'saerl-lightning[vllm]'` on a GPU "
                "machine, install requirements/cpu.txt on a CPU, or choose HFEngine"
            )

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        """Starts vLLM with the folder or hub name the policy was loaded from. Takes seconds to minutes."""
        self.check()
        self._max_model_len, self._ends = max_model_len, end_ids(model, tokenizer)
        self._reader = Reader(tokenizer, self._ends)
        self._rank, self._request = (adapter_rank(model) if self.adapters and self.sleep_level < 2 else 0), None
        self._weights_dtype = self.dtype if self.dtype != "auto" else str(compute_dtype(model)).removeprefix("torch.")
        self._several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        with random_state_restored(), _as_one_of_several(model.device) if self._several else nullcontext():
            self._llm = self._launch(model, max_model_len)

    def _launch(self, model: PreTrainedModel, max_model_len: int) -> Any:
        on_cpu = not torch.cuda.is_available()
        cache_gb = CPU_CACHE_GB if on_cpu and self.kv_cache_gb is None else self.kv_cache_gb
        _set_environment(on_cpu)
        from vllm import LLM

        with _cache_holds_a_row(max_model_len):
            return LLM(
                model=str(model.name_or_path),
                dtype=self._weights_dtype,  # type: ignore[arg-type]
                max_model_len=max_model_len,
                max_num_seqs=self.max_num_seqs,
                **(whole_prefills(max_model_len, self.max_num_seqs) if on_cpu else FULL_TAILS),
                gpu_memory_utilization=self.gpu_memory_utilization,
                kv_cache_memory_bytes=None if cache_gb is None else int(cache_gb * 2**30),
                enforce_eager=self.enforce_eager or on_cpu,
                enable_sleep_mode=self.sleep_level > 0 and not on_cpu,
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled: temperature, top_k and top_p in
                generation_config="vllm",  # no sampling defaults from the model folder
                trust_remote_code=self.trust_remote_code,
                use_tqdm_on_load=False,
                # An engine a process, on the process's device, beside the trainer's process group.
                distributed_executor_backend="external_launcher" if self._several else None,
                **(
                    {"enable_lora": True, "max_loras": 1, "max_lora_rank": allowed_rank(self._rank)}
                    if self._rank
                    else {}
                ),
            )

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """Samples `sampling.group_size` completions for each prompt. `stream` yields them as one part."""
        llm, reader = self._started()
        check_lengths(prompt_ids, sampling, self._max_model_len)
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        settings = [self._settings(sampling, seed) for seed in prompt_seeds(sampling, len(prompts))]
        # vLLM uses the global random state even if every request has a seed.
        with random_state_restored():
            answers = llm.generate(prompts, settings, use_tqdm=False, lora_request=self._request)
        # Greedy completions of one prompt are equal, so only one is generated, and it is repeated.
        copies = sampling.group_size if sampling.temperature == 0 else 1
        groups = [sorted(answer.outputs, key=lambda o: o.index) * copies for answer in answers]
        outputs = [output for group in groups for output in group]  # R
        completions = [list(output.token_ids) for output in outputs]
        logprobs = [_sampled_logprobs(output) for output in outputs]
        truncated = [output.finish_reason == "length" for output in outputs]
        return pack_rollouts(reader, prompt_ids, completions, logprobs, truncated, self._version)

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=1 if sampling.temperature == 0 else sampling.group_size,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=seed,
            stop=list(sampling.stop),
            stop_token_ids=self._ends,
            logprobs=0,  # of the sampled token, no alternatives
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,  # a stop text may be a special token
        )

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the full state dict into vLLM and clears cached prefixes.

        Args:
            named_tensors: Names and tensors of `state_dict()`, not of `named_parameters()`: that has a tied output head
                only under the embedding's name, and vLLM would keep its old head.
            version: Number that the next rollouts report as `weight_version`.
        """
        llm, _ = self._started()
        self._wake("weights")
        dtype = getattr(torch, self._weights_dtype)
        cast = ((name, tensor.to(dtype) if tensor.is_floating_point() else tensor) for name, tensor in named_tensors)
        with random_state_restored():
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast})
        self._wake("kv_cache")
        if not llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache; prefixes of the old weights would be sampled from")
        self._version = version

    @property
    def takes_adapters(self) -> bool:
        """Whether the policy has adapters and `adapters` is true."""
        return self._rank > 0

    def load_adapters(self, folder: Path, version: int) -> None:
        """Replaces the present adapters by those in a folder.

        Every version has its own name and number, which vLLM's prefix cache distinguishes, so no cached prefix is
        cleared.
        """
        from vllm.lora.request import LoRARequest

        llm, _ = self._started()
        for part in ("weights", "kv_cache"):
            self._wake(part)
        former, self._request = self._request, LoRARequest(f"policy-{version}", version + 1, str(folder))
        if former is not None:
            llm.llm_engine.remove_lora(former.lora_int_id)
        if not llm.llm_engine.add_lora(self._request):
            raise RuntimeError(f"vLLM did not take the adapters of version {version}")
        self._version = version

    def sleep(self) -> None:
        """Frees the GPU memory of cache and weights; does nothing at sleep_level 0 and on a CPU."""
        if self._llm is not None and self.sleep_level and torch.cuda.is_available() and not self._asleep:
            self._llm.sleep(level=self.sleep_level)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Claims the weights' memory again; `load_weights`, which must follow, claims the cache's."""
        self._wake("weights")

    def _wake(self, part: str) -> None:
        if part in self._asleep and self._llm is not None:
            self._llm.wake_up(tags=[part])
            self._asleep.remove(part)

    def close(self) -> None:
        """Stops vLLM and frees its memory."""
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        with _trainers_group_kept() if self._several else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._reader = self._request = None
        if not self._several:
            cleanup_dist_env_and_memory()

    def _started(self) -> tuple[Any, Reader]:
        if self._llm is None or self._reader is None:
            raise RuntimeError("VLLMEngine was used before start, or after close")
        return self._llm, self._reader


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype that the policy computes in: autocast's if it is on, else that of the weights."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def adapter_rank(model: PreTrainedModel) -> int:
    """The largest rank of the model's LoRA adapters; 0 if it has none."""
    configs = getattr(model, "peft_config", None) or {}
    return max((config.r for config in configs.values()), default=0)


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that is large enough for the adapters."""
    allowed = (8, 16, 32, 64, 128, 256, 320, 512)
    if rank > allowed[-1]:
        raise InputError(f"lora.rank is {rank}; vLLM adds adapters up to {allowed[-1]}: write engine.adapters: false")
    return next(size for size in allowed if size >= rank)


def whole_prefills(max_model_len: int, max_num_seqs: int) -> dict[str, Any]:
    """Scheduler settings with which vLLM never splits a prefill, for CPUs.

    With a split prefill, vLLM samples after every part, discards the token and resets the request's random generator; a
    CPU generator can't be reset. A row that lost its cache is prefilled again together with its completion so far. The
    token limit of a step is therefore the longest row plus one token for every other row.
    """
    budget = max(CPU_STEP_TOKENS, max_model_len + max_num_seqs)
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": budget}


@contextmanager
def _cache_holds_a_row(max_model_len: int) -> Iterator[None]:
    """Turns vLLM's error about a key-value cache smaller than one row into an InputError."""
    try:
        yield
    except ValueError as error:
        if not any(words in str(error) for words in ("KV cache", "cache blocks")):
            raise
        raise InputError(
            f"vLLM's key-value cache can't hold one row of {max_model_len} tokens; raise engine.kv_cache_gb (or "
            "engine.gpu_memory_utilization), or lower sampling.max_tokens and chat.max_prompt_tokens"
        ) from error


@contextmanager
def _as_one_of_several(device: torch.device) -> Iterator[None]:
    """Sets the variables by which vLLM finds its rank and its device among several processes."""
    names = {"RANK": torch.distributed.get_rank(), "LOCAL_RANK": device.index or 0}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _trainers_group_kept() -> Iterator[None]:
    """Lets vLLM's engine end its own groups alone: its clean-up would destroy the process group, which is the trainer's."""
    from vllm.distributed.parallel_state import destroy_model_parallel
    from vllm.v1.engine import core

    with patch.object(core, "cleanup_dist_env_and_memory", destroy_model_parallel):
        yield


def _set_environment(on_cpu: bool) -> None:
    """Sets the options that vLLM reads from environment variables only; the user's values stay."""
    # Weights are passed by reference, which works within one process only.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if on_cpu:
        # vLLM would bind its threads to cores that the trainer uses too.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_CI_ENV", "1")  # no warm-up


def _sampled_logprobs(output: Any) -> list[float]:
    """Reads the log-probability of every sampled token: the first entry of each position."""
    flat = output.logprobs
    return [flat.logprobs[i] for i in flat.start_indices]
