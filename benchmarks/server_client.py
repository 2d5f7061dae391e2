"""What ServerEngine itself costs: milliseconds a completion against a server that answers at once, and a file sync.

`.venv/bin/python benchmarks/server_client.py` asks a stand-in process for 10,000 completions, in groups of 8 and one by
one, and prints wall and processor time of the client a completion: requests, JSON, texts and padded rows. Then it writes
and reads weights of SmolLM2's size as FileTransfer does, beside safetensors' own save and load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.rollout.transfer.file_transfer import MEMORY, FileTransfer, write_weights

GB = 2**30


class AtOnce:
    """A server that answers every prompt with the same completions, as fast as it can."""

    def __init__(self, model: str, tokens: int) -> None:
        self.version = "default"
        self.tokens = tokens
        self.known: dict[tuple[int, str], str] = {}  # choices by group size and version, written once
        config = {
            "dtype": "torch.float32",
            "max_model_len": 4096,
            "logprobs_mode": "processed_logprobs",
            "model": model,
        }
        config |= {"generation_config": "vllm", "use_fp64_gumbel": False}
        self.settings = {"model_config": config, "device_config": {"device": "cpu"}}
        self.settings["scheduler_config"] = {"enable_chunked_prefill": False}
        self.settings["parallel_config"] = {"worker_extension_cls": ""}

    def choices(self, group: int) -> str:
        """What vLLM 0.32 writes for `group` completions."""
        content = [{"token_id": 65 + i % 50, "logprob": -1.2345678 - i, "rank": 3} for i in range(self.tokens)]
        for each in content:
            each["top_logprobs"] = [dict(each)]
        ids = [each["token_id"] for each in content]
        rest = {"finish_reason": "length", "stop_reason": None, "routed_experts": None, "sampling_mask": None}
        rest |= {"weight_versions": [{"version": self.version, "start": 0, "end": self.tokens}]}
        made = [{"index": g, **rest, "token_ids": ids, "logprobs": {"content": content}} for g in range(group)]
        return json.dumps(made, separators=(",", ":"))

    def reply(self, path: str, content: bytes) -> tuple[int, str]:
        """Status and text of an answer."""
        body = json.loads(content) if content else {}
        if path == "/inference/v1/generate":
            if not body:
                return 400, "{}"
            key = body["sampling_params"]["n"], self.version
            if key not in self.known:
                self.known[key] = self.choices(key[0])
            return 200, f'{{"request_id":"{body["request_id"]}","choices":{self.known[key]}}}'
        if path == "/update_weight_version":
            self.version = body["new_version"]
        answers = {
            "/v1/models": {"data": [{"id": "policy"}]},
            "/server_info": {"vllm_config": self.settings},
            "/weight_info": {"weight_version": self.version},
            "/reset_prefix_cache": {"success": True},
        }
        return 200, json.dumps(answers.get(path, {}))

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                status, text = self.reply(first.split()[1].partition("?")[0], content)
                data = text.encode()
                writer.write(f"HTTP/1.1 {status} OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def serve(model: str, tokens: int) -> None:
    """Runs the server until it is killed; prints its port."""

    async def run() -> None:
        server = await asyncio.start_server(AtOnce(model, tokens).talk, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def measure(completions: int, group: int, tokens: int, folder: Path) -> tuple[float, float]:
    """Wall and processor milliseconds of the client a completion."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    command = [sys.executable, __file__, "--serve", str(folder), "--tokens", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        try:
            with ServerEngine([url]) as engine:
                engine.start(model, AutoTokenizer.from_pretrained(folder), 1024)
                engine.load_weights(model.state_dict().items(), 1)
                sampling = Sampling(group_size=group, max_tokens=tokens)
                engine.generate([[5, 6, 7]] * 8, sampling)  # connections
                prompts = [[5 + i % 50, *range(40, 100)] for i in range(completions // group)]
                wall, cpu = time.perf_counter(), time.process_time()
                rows = sum(len(part.texts) for part in engine.stream(prompts, sampling))
                spent = time.perf_counter() - wall, time.process_time() - cpu
        finally:
            process.kill()
    assert rows == len(prompts) * group
    return 1000 * spent[0] / rows, 1000 * spent[1] / rows


def smollm2_sized() -> dict[str, torch.Tensor]:
    """Weights of SmolLM2's shapes, the tied head under both names."""
    d, inner, kv = 576, 1536, 192
    weights = {"model.embed_tokens.weight": torch.randn(49152, d)}
    for i in range(30):
        shapes = {
            "q": (d, d),
            "k": (kv, d),
            "v": (kv, d),
            "o": (d, d),
            "gate": (inner, d),
            "up": (inner, d),
            "down": (d, inner),
        }
        weights |= {f"model.layers.{i}.{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def measure_files(repeats: int) -> tuple[float, float]:
    """Median seconds of writing and reading weights: as FileTransfer does, and by safetensors alone."""
    from safetensors.torch import load_file, save_file

    weights = smollm2_sized()
    place = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    ours, bare = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            began = time.perf_counter()
            write_weights(weights.items(), Path(folder), int(FileTransfer().file_gb * GB))
            for file in sorted(Path(folder).glob("*.safetensors")):
                load_file(file)
            ours.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            began = time.perf_counter()
            save_file({**weights, "lm_head.weight": weights["lm_head.weight"].clone()}, Path(folder, "w.safetensors"))
            load_file(Path(folder, "w.safetensors"))
            bare.append(time.perf_counter() - began)
    return statistics.median(ours), statistics.median(bare)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=10_000, help="number of completions of a measurement")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--repeats", type=int, default=5, help="number of file syncs")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.tokens)
        return
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(build_tiny_policy(str(Path(folder, "tiny")), ["What is 12 + 7? It is 19."], seed=0))
        for group in (8, 1):
            wall, cpu = measure(given.completions, group, given.tokens, policy)
            print(
                f"{given.completions:,} completions of {given.tokens} tokens in groups of {group}: {wall:.2f} ms a "
                f"completion, {cpu:.2f} ms of processor time"
            )
    ours, bare = measure_files(given.repeats)
    print(f"files of SmolLM2's size: {ours:.2f} s, safetensors' save and load {bare:.2f} s, ratio {ours / bare:.2f}")


if __name__ == "__main__":
    main()
