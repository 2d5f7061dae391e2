"""`export --push_to_hub`, with the hub's own client against a small hub on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from saerl_lightning import hub
from saerl_lightning.errors import tool


class Answers(BaseHTTPRequestHandler):
    """The calls of an upload; `server.said` notes what came, `server.broken` is a path that is answered by 500."""

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            valid = self.headers.get("authorization") == "Bearer hf_right"
            self.answer(
                {"name": "ann", "orgs": [{"name": "lab"}]} if valid else {"error": "bad token"}, 200 if valid else 401
            )
        else:
            self.answer({"siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith(self.server.broken):
            self.answer({"error": "out of order"}, 500)
        elif self.path == "/api/repos/create":
            self.server.said["created"] = json.loads(body)
            self.answer({"url": "https://huggingface.co/lab/m"})
        elif self.path == "/api/validate-yaml":  # of the card
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            self.answer({"files": [{**each, "shouldIgnore": False} for each in files]})
        else:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.server.said["files"] = {each["path"]: base64.b64decode(each["content"]) for each in values}
            self.answer({"commitUrl": "https://huggingface.co/lab/m/commit/1", "commitOid": "1" * 40, "success": True})

    def answer(self, body, code: int = 200):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.said, server.broken = {}, "/nothing"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.reachable.cache_clear()
    yield server
    hub.reachable.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.fixture
def asked(trained, door, tmp_path):
    """Exports to the folder `hf`, and uploads."""
    checkpoint = str(trained.workplace.last)
    start = torch.load(checkpoint, weights_only=True)["policy"]["path"]

    def ask(repository: str, *flags: str) -> SimpleNamespace:
        folder = tmp_path / "hf"
        command = ["export", checkpoint, str(folder), f"--policy={start}", f"--push_to_hub={repository}", *flags]
        return SimpleNamespace(ended=door(command), folder=folder)

    return ask


def test_the_folders_files_are_uploaded_to_a_private_repository(asked, served):
    made = asked("lab/m")
    assert made.ended.code == 0, made.ended.stderr
    files = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    assert served.said["files"] == files and "model.safetensors" in files
    assert served.said["created"]["organization"] == "lab" and served.said["created"]["visibility"] == "private"


def test_the_card_says_how_far_it_was_trained_and_names_no_folder(asked, served):
    made = asked("ann/m", "--private=false")
    card = (made.folder / "README.md").read_text()
    assert "Weights after 4 optimiser steps, float32." in card and "base_model" not in card and "/tmp" not in card
    assert served.said["created"]["visibility"] == "public"


@pytest.mark.parametrize(
    ("repository", "token", "error"),
    [
        ("m", "hf_right", "'m' is no name on the hub; write OWNER/NAME"),
        ("bob/m", "hf_right", "you can't write to 'bob/m': the token is of ann, lab"),
        ("ann/m", "hf_wrong", "the hub refuses the token"),
        ("ann/m", None, f"no token for the hub is found: run '{tool('hf')} auth login', set HF_TOKEN"),
    ],
)
def test_what_can_not_be_uploaded_is_refused_before_anything_is_written(
    asked, served, monkeypatch, repository, token, error
):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    made = asked(repository)
    assert made.ended.code == 2 and error in made.ended.error
    assert not made.folder.exists() and not served.said


def test_a_hub_that_does_not_answer_is_said_at_once(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    made = asked("ann/m")
    assert made.ended.code == 2 and "the hub can't be reached" in made.ended.error and not made.folder.exists()


def test_an_upload_that_fails_leaves_the_folder_and_says_how_to_go_on(asked, served):
    served.broken = "/api/models/ann/m/commit"
    made = asked("ann/m")
    assert made.ended.code == 2 and "the upload to 'ann/m' failed" in made.ended.error
    assert f"go on with '{tool('hf')} upload ann/m {made.folder}'" in made.ended.error
    assert (made.folder / "model.safetensors").is_file()
