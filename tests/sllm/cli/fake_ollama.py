"""A server on loopback that answers Ollama's API as a model would that repeats what it is told."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FIGURES = {
    "done": True,
    "total_duration": 2_500_000_000,
    "load_duration": 100_000_000,
    "prompt_eval_count": 10,
    "prompt_eval_duration": 100_000_000,
    "eval_count": 40,
    "eval_duration": 2_000_000_000,
}


@dataclass
class FakeOllama:
    """What it was asked, and which models it has. A model named 'slow' never ends its answer.

    left: set when a client goes before its answer is over.
    """

    url: str = ""
    token: str | None = None
    models: set[str] = field(default_factory=lambda: {"tiny"})
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    forecast: dict[str, Any] | None = None
    left: threading.Event = field(default_factory=threading.Event)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Return the bodies of requests to a path."""
        return [body for one, body in self.asked if one == path]


@contextmanager
def serve_ollama() -> Iterator[FakeOllama]:
    """Serve until the context ends."""
    fake = FakeOllama()
    handler = type("Handler", (_Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers for the fake that is its class's."""

    fake: FakeOllama

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name.
        """Stay quiet."""

    def do_GET(self) -> None:
        loaded = {"name": "tiny", "digest": "sha256:" + "a" * 64, "size": 2048, "size_vram": 512}
        answers: dict[str, dict[str, Any]] = {
            "/api/version": {"version": "1"},
            "/api/tags": {"models": [{"name": name} for name in sorted(self.fake.models)]},
            "/api/ps": {"models": [{**loaded, "context_length": 64, "expires_at": None}]},
        }
        if self.fake.forecast is not None:
            answers["/api/ps"]["models"][0]["forecast"] = self.fake.forecast
        self._finish(answers[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.asked.append((self.path, body))
        if self.fake.token and self.headers.get("Authorization") != f"Bearer {self.fake.token}":
            self._finish({"error": "a token is needed"}, 401)
        elif self.path == "/api/pull":
            self.fake.models.add(body["model"])
            step = {"status": "pulling abc", "digest": "sha256:abc", "total": 4}
            self._stream([{**step, "completed": 2}, {**step, "completed": 4}])
            self._line({"status": "success"})
        elif self.path != "/api/create" and body["model"] not in self.fake.models:
            self._finish({"error": f"model {body['model']!r} not found"}, 404)
        elif self.path == "/api/show":
            message = {"role": "user", "content": "from the Modelfile"}
            own = {"system": "its own", "details": {"family": "llama", "families": ["llama"]}}
            self._finish({**own, "messages": [message] if body["model"] == "primed" else []})
        elif self.path == "/api/generate" and body.get("prompt"):
            self._answer(body, body["prompt"], "generate")
        elif self.path == "/api/chat":
            self._answer(body, body["messages"][-1]["content"], "chat")
        else:
            self._finish({"done": True})

    def _answer(self, body: dict[str, Any], text: str, kind: str) -> None:
        if body.get("think"):
            self._stream([_line_of(kind, thinking="hm")])
        else:
            self._stream([])
        if text == "fail":
            self._line({"error": "the model broke"})
            return
        for word in text.split(" "):
            self._line(_line_of(kind, f"{word} "))
        try:
            while body["model"] == "slow":
                self._line(_line_of(kind, "and so on "))
        except OSError:
            self.fake.left.set()
            return
        self._line({**_line_of(kind, ""), **FIGURES})

    def _stream(self, lines: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.end_headers()
        for line in lines:
            self._line(line)

    def _line(self, line: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(line).encode() + b"\n")
        self.wfile.flush()

    def _finish(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _line_of(kind: str, text: str = "", thinking: str | None = None) -> dict[str, Any]:
    more = {} if thinking is None else {"thinking": thinking}
    if kind == "chat":
        return {"message": {"role": "assistant", "content": text, **more}, "done": False}
    return {"response": text, "done": False, **more}
