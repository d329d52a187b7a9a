"""A hub on loopback that speaks as much of Hugging Face's protocol as a pull needs."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_token"


@dataclass
class FakeHub:
    """Repositories by name: files by name. `gated` ones want TOKEN.

    cut_after: bytes of a file after which its next download breaks off. gets: (file, first byte).
    without_ranges: whether it has whole files only.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    lies: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    gets: list[tuple[str, int]] = field(default_factory=list)
    without_ranges: bool = False
    sent_bytes: int = 0


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """Serve until the context ends."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def sha256(data: bytes) -> str:
    """Return a digest in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Answers for the hub that is its class's."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name.
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        repository = "/".join(path.removeprefix("api/models/").split("/")[:2])
        files = self.hub.repositories.get(repository)
        if files is None:
            self._refuse(404, "RepoNotFound")
        elif repository in self.hub.gated and TOKEN not in self.headers.get("Authorization", ""):
            self._refuse(401 if path.startswith("api/") else 403, "GatedRepo")
        elif path.startswith("api/"):
            self._list(path, files)
        else:
            self._send_file(path.split(f"{repository}/resolve/{COMMIT}/", 1)[-1], files)

    def _list(self, path: str, files: dict[str, bytes]) -> None:
        if "/revision/" in path and not path.endswith(("/main", COMMIT)):
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(data).hexdigest(),
                "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1}
                if len(data) > 500
                else None,
            }
            for name, data in files.items()
        ]
        body = json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _send_file(self, name: str, files: dict[str, bytes]) -> None:
        data = files.get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        asked = "" if self.hub.without_ranges else self.headers.get("Range", "")
        start, _, last = asked.removeprefix("bytes=").partition("-")
        first, end = int(start or 0), min(int(last) + 1 if last else len(data), len(data))
        headers = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": COMMIT}
        if name in self.hub.lies:
            data = bytes(len(data))
        if asked:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        cut = None
        if self.command == "GET":
            self.hub.gets.append((name, first))
            cut = self.hub.cut_after.pop(name, None)
            self.hub.sent_bytes += end - first
        self._send(206 if asked else 200, headers, data[first:end], cut)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None
