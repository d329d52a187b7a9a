"""A store in a process of its own, for the benchmarks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from sllm_store.client import SllmStoreClient

if TYPE_CHECKING:
    from pathlib import Path

THREADS = 16
_SERVE = """
import sys
from pathlib import Path
from sllm_store.config import StoreConfig
from sllm_store.server.serve import serve
from sllm_store.tiers.fan_in import parse_fan_in
from sllm_store.units import parse_size
storage, socket, pool, threads, fan_in = sys.argv[1:]
serve(
    StoreConfig(
        storage_path=Path(storage),
        socket_path=Path(socket),
        pool_bytes=parse_size(pool),
        threads=int(threads),
        fan_in=parse_fan_in(fan_in),
    ),
    on_ready=lambda addresses: print(addresses, flush=True),
)
"""


class BenchStore:
    """A running store; `ready_s` is how long it took to start."""

    def __init__(
        self, storage: Path, pool: str, *, threads: int = THREADS, fan_in: str = ""
    ) -> None:
        """Start it over the checkpoints in `storage` and wait until it answers."""
        socket = storage / "bench.sock"
        self.address = f"unix:{socket}"
        started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(storage), str(socket), pool, str(threads), fan_in],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit("the store did not start")
        self.ready_s = time.perf_counter() - started_s

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fill(self, model: str, device: str = "") -> float:
        """Bring a model into the pool, or into a GPU's memory, and keep it there.

        Returns the seconds that took.
        """
        where = {"": device} if device else None
        started_s = time.perf_counter()
        with SllmStoreClient(self.address) as client:
            client.set_pinned(model, pinned=True, device_map=where)
        return time.perf_counter() - started_s

    def forget(self, model: str) -> None:
        """Let the store drop a model that nobody uses any more from all its memory."""
        with SllmStoreClient(self.address) as client:
            client.unload_from_gpu(model)
            client.unload_from_cpu(model)

    def stop(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
