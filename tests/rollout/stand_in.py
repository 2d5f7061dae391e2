"""A stand-in for a vLLM server: the routes that a trainer calls, over real HTTP, with faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SETTINGS = {
    "model_config": {
        "model": "",
        "dtype": "torch.float32",
        "max_model_len": 256,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "use_fp64_gumbel": False,
    },
    "device_config": {"device": "cpu"},
    "scheduler_config": {"enable_chunked_prefill": False},
    "parallel_config": {"worker_extension_cls": "", "world_size": 1},
    "weight_transfer_config": None,
    "lora_config": {"max_lora_rank": 8},
}


class StandIn:
    """A server whose completion g of a prompt is [its first token, the seed modulo 7, g].

    `faults` maps a path to a function of the request's body and its number on this path; it returns None, or a status
    and a text that are answered instead; it may sleep, or raise ConnectionError to hang up.
    """

    def __init__(self, model: str = "", **settings: dict) -> None:
        self.settings = {name: {**(SETTINGS[name] or {}), **settings.get(name, {})} for name in SETTINGS}
        self.settings["model_config"]["model"] = self.settings["model_config"]["model"] or model
        self.version = "default"
        self.paused = False
        self.adapters: dict[str, str] = {}  # folders by name
        self.asked: list[tuple[str, object]] = []  # path and body
        self.counts: Counter[str] = Counter()
        self.faults: dict = {}
        self.change = lambda answer, body: answer  # of /inference/v1/generate
        self.dead = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(json.loads(text) if text else None)

            def answer(self, body: object) -> None:
                path = self.path.partition("?")[0]
                try:
                    status, content = stand_in.reply(path, body, dict(self.headers))
                    content = content if isinstance(content, str) else json.dumps(content)
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content.encode())
                except (ConnectionError, BrokenPipeError):
                    self.close_connection = True
                if stand_in.dead.is_set():
                    self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, path: str, body, headers) -> tuple[int, object]:
        if self.dead.is_set():
            raise ConnectionError
        self.asked.append((path, body))
        self.counts[path] += 1
        if (fault := self.faults.get(path) or self.faults.get("*")) and (
            said := fault(body, self.counts[path])
        ) is not None:
            return said
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.settings["model_config"]["max_model_len"]}]}
        if path == "/server_info":
            return 200, {"vllm_config": self.settings}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
            return 200, {"status": path}
        if path == "/collective_rpc":
            return 200, {"results": [None]}
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self.change_adapters(path, body)
        if path == "/inference/v1/generate":
            return self.generate(body)
        return 404, {"detail": "Not Found"}

    def change_adapters(self, path: str, body) -> tuple[int, object]:
        if not body:
            return 400, {"error": {"message": "lora_name: field required"}}
        if "unload" in path:
            del self.adapters[body["lora_name"]]
        else:
            assert Path(body["lora_path"], "adapter_model.safetensors").is_file()
            self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, "Success: so it is."

    def generate(self, body) -> tuple[int, object]:
        if not body:
            return 400, {"error": {"message": "token_ids: field required"}}
        if body["model"] not in ("policy", *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        n, seed = body["sampling_params"]["n"], body["sampling_params"]["seed"]
        rows = [[body["token_ids"][0], seed % 7, g] for g in range(n)]
        choices = [
            {
                "index": g,
                "token_ids": ids,
                "finish_reason": "length",
                "weight_versions": [{"version": self.version, "start": 0, "end": 3}],
                "logprobs": {"content": [{"logprob": -0.5 * (k + 1)} for k in range(len(ids))]},
            }
            for g, ids in reversed(list(enumerate(rows)))
        ]
        return 200, self.change({"request_id": f"generate-tokens-{body['request_id']}", "choices": choices}, body)

    def prompts(self) -> list[int]:
        """First tokens of the prompts that it was asked for."""
        asked = [body for path, body in self.asked if path == "/inference/v1/generate" and body]
        return [body["token_ids"][0] for body in asked]

    def kill(self) -> None:
        """Hangs up on everything from now on, and takes no more connections."""
        self.dead.set()
        self.http.shutdown()
        self.http.server_close()

    def close(self) -> None:
        if not self.dead.is_set():
            self.kill()


def slowly(seconds: float):
    """A fault that keeps the caller waiting."""

    def wait(body, number):
        time.sleep(seconds)

    return wait
