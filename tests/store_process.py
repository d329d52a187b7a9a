"""Stores in processes of their own, checkpoints for them, and looks into a process from outside."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.client import SllmStoreClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.checkpoint.loaded import Loaded


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


def start_process(
    storage: Path, directory: Path, env: dict[str, str] | None = None, **settings: object
) -> StoreProcess:
    """Start a store whose socket and log are in `directory`; settings are StoreConfig's."""
    socket_path = directory / f"s{len(list(directory.glob('s*.log')))}.sock"
    settings = {
        "storage_path": storage,
        "socket_path": socket_path,
        "pool_bytes": 64 << 20,
        "chunk_bytes": 2 << 20,
        "threads": 4,
    } | settings
    log = socket_path.with_suffix(".log")
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
    if not line:
        process.communicate()
        raise AssertionError(f"the store did not start: {log.read_text()}")
    addresses = ast.literal_eval(line)
    return StoreProcess(process, addresses[0], addresses, log)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for something that another process is about to do."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)


def write_upstream(directory: Path, tensors: dict[str, bytes]) -> None:
    """Write a checkpoint as ServerlessLLM does: padded to 8 bytes, indexed by lists of five."""
    directory.mkdir(parents=True)
    index, data = {}, b""
    for name, content in tensors.items():
        index[name] = [len(data), len(content), [len(content)], [1], "torch.uint8"]
        data += content + b"\xff" * (-len(content) % 8)
    (directory / "tensor.data_0").write_bytes(data)
    (directory / "tensor_index.json").write_text(json.dumps(index))


def random_tensors(count: int, size_bytes: int, *, seed: int = 0) -> dict[str, bytes]:
    """Return named bytes that repeat for a seed; sizes differ a little so that nothing aligns."""
    random = Random(seed)
    return {f"layers.{i}.w": random.randbytes(size_bytes + 13 * i) for i in range(count)}


def weight_tensors(count: int, size_bytes: int) -> dict[str, bytes]:
    """Return 16-bit floats: weights that compress, and of each third one only the first half."""
    from tests.checkpoint_memory import weights  # With NumPy, which most clients do without.

    tensors = {}
    for number in range(count):
        size = size_bytes // 2 * 2 + 26 * number
        content = weights(size // 2, seed=number)
        if number % 3 == 2:
            content = content[: size // 2] + Random(number).randbytes(size - size // 2)
        tensors[f"layers.{number}.w"] = content
    return tensors | {"norm": weights(100), "small": b"12345678"}


def write_checkpoint(directory: Path, tensors: dict[str, bytes], *, compress: bool) -> None:
    """Write a checkpoint of ours, all of bfloat16."""
    from tests.checkpoint_memory import Memory

    memory = Memory()
    with CheckpointWriter(directory, compress=compress) as writer:
        writer.write(
            [memory.tensor(name, content, "bfloat16") for name, content in tensors.items()]
        )


def read_tensors(loaded: Loaded, *, arena: int = 0) -> dict[str, bytes]:
    """Return the bytes of every tensor in a host arena."""
    buffer = loaded.arenas[arena]
    assert isinstance(buffer, native.HostBuffer | native.PoolMapping)
    memory = (ctypes.c_char * buffer.size).from_address(buffer.address).raw
    return {
        t.name: memory[t.offset_bytes : t.offset_bytes + contiguous_bytes(t.dtype, t.shape)]
        for t in loaded.tensors
        if t.arena == arena
    }


def open_descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
