"""A small chat server on 127.0.0.1 that answers as a test says, and misbehaves as real ones do."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatHandler(BaseHTTPRequestHandler):
    server: "JudgeServer"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.turn:
            self.server.asked.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.at.append(time.monotonic())
            self.server.present += 1
            self.server.most_present = max(self.server.present, self.server.most_present)
            self.here = True
        try:
            self.server.answer(self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.leave()

    def leave(self) -> None:
        """Counts the request as gone; before its reply, upon which a client may send the next at once."""
        with self.server.turn:
            self.server.present -= self.here
            self.here = False

    def send(self, status: int, content: bytes | dict, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        self.leave()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def reply(self, text: str | None, finish: str = "stop") -> None:
        message = {"role": "assistant", "content": text}
        self.send(200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}]})

    def log_message(self, *args: Any) -> None:
        pass


Answer = Callable[[ChatHandler, dict], None]


class JudgeServer(ThreadingHTTPServer):
    """Use as a context; `answer` may be changed at any time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.answer: Answer = answer or (lambda handler, body: handler.reply("Score: 5"))
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        self.at: list[float] = []
        self.present = self.most_present = 0
        self.turn = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        super().__exit__(*exc)


def graded_by_length(handler: ChatHandler, body: dict) -> None:
    """As many points as the question's last line has letters x, at most ten."""
    handler.reply(f"Score: {min(10, body['messages'][-1]['content'].count('x'))}")
