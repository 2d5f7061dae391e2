"""A server that answers the requests for W&B's runs and views, on this machine."""

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class FakeWandb:
    """A server that knows who the key belongs to, has runs, and takes views, of its own entity only."""

    views: list[dict] = field(default_factory=list)
    runs: dict[str, dict] = field(default_factory=dict)  # summaries by run id
    address: str = ""

    def answer(self, asked: dict) -> dict:
        if "upsertView" in asked.get("query", ""):
            if asked["variables"]["entityName"] != "me":
                return {"errors": [{"message": "permission denied"}], "data": None}
            self.views.append(asked["variables"])
            return {"data": {"upsertView": {"view": {"id": "V1", "name": asked["variables"]["name"]}}}}
        if "RunFragment" in asked.get("query", ""):
            return {"data": {"project": {"internalId": "P1", "run": self.run(asked["variables"]["name"])}}}
        viewer = {"id": "U1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer}}

    def run(self, name: str) -> dict | None:
        summary = self.runs.get(name)
        if summary is None:
            return None
        known = {"id": "R1", "name": name, "displayName": "brave-run-1", "state": "finished", "tags": []}
        times = {"createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z"}
        return {**known, **times, "config": "{}", "summaryMetrics": json.dumps(summary), "systemMetrics": "{}"}


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[FakeWandb]:
    import wandb

    fake = FakeWandb()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            asked = json.loads(body) if self.path == "/graphql" else {}
            answer = json.dumps(fake.answer(asked)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        fake.address = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", fake.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        for name in ("CACHE", "CONFIG", "DATA"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
        wandb.teardown()
        yield fake
        wandb.teardown()
        listening.shutdown()
