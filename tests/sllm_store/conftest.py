"""A real store in a process of its own, on a private socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from sllm_store.client import SllmStoreClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVE = """
import logging, sys
from pathlib import Path
from sllm_store.config import StoreConfig
from sllm_store.server.serve import serve
logging.basicConfig(level=logging.INFO)
settings = eval(sys.argv[1], {"Path": Path, "PosixPath": Path})
serve(StoreConfig(**settings), on_ready=lambda addresses: print(addresses, flush=True))
"""


@dataclass
class StoreProcess:
    """A running store; `address` is its Unix socket, `addresses` all of them."""

    process: subprocess.Popen[str]
    address: str
    addresses: list[str]
    log: Path
    clients: list[SllmStoreClient] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, **kwargs: str) -> SllmStoreClient:
        client = SllmStoreClient(self.address, **kwargs)
        self.clients.append(client)
        return client

    def stop(self, number: int = signal.SIGTERM) -> int:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code




@pytest.fixture
def start_store(tmp_path: Path) -> Iterator[Callable[..., StoreProcess]]:
    """Start stores with the given settings; all are stopped in the end, and must stop cleanly."""
    started: list[StoreProcess] = []

    def start(storage: Path, env: dict[str, str] | None = None, **settings: object) -> StoreProcess:
        number = len(started)
        socket_path = tmp_path / f"s{number}.sock"
        settings = {
            "storage_path": storage,
            "socket_path": socket_path,
            "pool_bytes": 64 << 20,
            "chunk_bytes": 2 << 20,
            "threads": 4,
        } | settings
        log = tmp_path / f"store-{number}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, repr(settings)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(env or {})},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the store did not start: {log.read_text()}"
        store = StoreProcess(process, f"unix:{settings['socket_path']}", eval(line), log)
        started.append(store)
        return store

    yield start
    for store in started:
        store.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for something that another process is about to do."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)


