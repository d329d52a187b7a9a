"""The store's own protocol: shared host memory, leases that die with their owner, progress."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.client import SllmStoreClient
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    PoolExhaustedError,
)
from sllm_store.local_connection import LocalConnection
from sllm_store.proto import storage_pb2 as pb
from tests.store_process import (
    open_descriptors,
    random_tensors,
    read_tensors,
    resident_bytes,
    wait_until,
    write_upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]

MB = 1 << 20

HOLD = """
import sys
from sllm_store.client import SllmStoreClient
with SllmStoreClient(sys.argv[1]) as client:
    loaded = client.load("m")
print(loaded.tier, loaded.arenas[0].address, flush=True)
sys.stdin.read()
"""


def connect(store: StoreProcess) -> LocalConnection:
    return LocalConnection(store.client().status().local_socket, address=store.address)


def plan_of(store: StoreProcess, model: str, **device_map: str) -> str:
    """Return the id of a plan."""
    question = pb.PlanLoadRequest(model=model, device_map=device_map)
    with connect(store) as connection:
        return str(connection.call(pb.LocalRequest(plan=question)).plan.plan)


def hold(address: str) -> subprocess.Popen[str]:
    """Start a process that loads m, closes its client and keeps the memory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("")


def test_ten_processes_share_one_copy(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(4, 5 * MB))
    store = start_store(tmp_path / "models")
    client = store.client()
    holders = [hold(store.address) for _ in range(10)]
    status = client.status()
    assert status.pool_used_bytes == 22 * MB
    assert status.leases == 10
    for process in holders:
        end(process)
    wait_until(lambda: client.status().leases == 0)


def test_writing_to_loaded_memory_is_private(start_store: Start, tmp_path: Path) -> None:
    tensors = random_tensors(2, MB)
    write_upstream(tmp_path / "models" / "m", tensors)
    client = start_store(tmp_path / "models").client()
    mine, other = client.load("m"), client.load("m")
    arena = mine.arenas[0]
    assert isinstance(arena, native.PoolMapping)
    ctypes.memset(arena.address, 0, arena.size)
    assert read_tensors(other) == tensors
    assert read_tensors(client.load("m")) == tensors


def test_a_lease_outlives_its_client_and_ends_with_the_memory(
    start_store: Start, tmp_path: Path
) -> None:
    tensors = random_tensors(2, MB)
    write_upstream(tmp_path / "models" / "m", tensors)
    write_upstream(tmp_path / "models" / "n", random_tensors(20, 3 * MB))
    store = start_store(tmp_path / "models")
    with SllmStoreClient(store.address) as short_lived:
        loaded = short_lived.load("m")
    client = store.client()
    wait_until(lambda: client.status().sessions == 0)
    with pytest.raises(PoolExhaustedError, match="m "):
        client.load("n", timeout_s=0.2)
    assert read_tensors(loaded) == tensors
    del loaded
    wait_until(lambda: client.status().leases == 0)
    assert len(read_tensors(client.load("n"))) == 20


def test_a_killed_process_gives_its_lease_back(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(2, MB))
    store = start_store(tmp_path / "models")
    client = store.client()
    holder = hold(store.address)
    assert client.status().leases == 1
    holder.kill()
    holder.communicate()
    wait_until(lambda: client.status().leases == 0)
    client.unload_from_cpu("m")
    assert client.status().pool_used_bytes == 0


def test_memory_stays_valid_when_the_store_dies(start_store: Start, tmp_path: Path) -> None:
    tensors = random_tensors(3, MB)
    write_upstream(tmp_path / "models" / "m", tensors)
    store = start_store(tmp_path / "models")
    loaded = store.client().load("m")
    store.stop(signal.SIGKILL)
    assert read_tensors(loaded) == tensors


def test_a_store_starts_again_after_it_was_killed(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(1, MB))
    socket_path = tmp_path / "again.sock"
    start_store(tmp_path / "models", socket_path=socket_path).stop(signal.SIGKILL)
    store = start_store(tmp_path / "models", socket_path=socket_path)
    assert store.client().load("m").tier == "disk"


def test_loads_of_one_model_read_it_once(start_store: Start, tmp_path: Path) -> None:
    tensors = random_tensors(8, 5 * MB)
    write_upstream(tmp_path / "models" / "m", tensors)
    store = start_store(tmp_path / "models")

    def load(_: int) -> str:
        with SllmStoreClient(store.address) as client:
            loaded = client.load("m")
            assert read_tensors(loaded) == tensors
            return loaded.tier

    with ThreadPoolExecutor(8) as threads:
        tiers = list(threads.map(load, range(8)))
    assert sorted(tiers) == ["disk"] + ["host"] * 7


def test_models_that_do_not_fit_together_take_turns(start_store: Start, tmp_path: Path) -> None:
    models = {name: random_tensors(3, 3 * MB, seed=ord(name)) for name in "abcd"}
    for name, tensors in models.items():
        write_upstream(tmp_path / "models" / name, tensors)
    store = start_store(tmp_path / "models", pool_bytes=24 * MB)

    def load(index: int) -> None:
        name = "abcd"[index % 4]
        with SllmStoreClient(store.address) as client:
            assert read_tensors(client.load(name, timeout_s=60)) == models[name]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(load, range(40)))
    client = store.client()
    wait_until(lambda: client.status().leases == 0)
    client.clear_mem()
    assert client.status().pool_used_bytes == 0


def test_progress_is_told_and_ends_at_the_total(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(2, MB))
    seen: list[tuple[int, int]] = []
    client = start_store(tmp_path / "models").client()
    client.load("m", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 2 * MB


def test_a_pinned_model_survives_pressure(start_store: Start, tmp_path: Path) -> None:
    for name in "abc":
        write_upstream(tmp_path / "models" / name, random_tensors(3, 3 * MB))
    client = start_store(tmp_path / "models", pool_bytes=24 * MB).client()
    client.set_pinned("a", pinned=True)
    for name in "bcb":
        client.load(name)
    listed = {model.name: model for model in client.list_models()}
    assert listed["a"].pinned
    assert listed["a"].host_bytes == 10 * MB
    client.set_pinned("a", pinned=False)
    client.load("c")
    assert client.load("a").tier in {"disk", "mixed"}


def test_a_plan_is_known_by_its_id_and_targets_must_match(
    start_store: Start, tmp_path: Path
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(1, 100))
    store = start_store(tmp_path / "models")
    plan = plan_of(store, "m")
    target = pb.DeviceTarget(device="gpu", ipc_handle=bytes(64))
    requests = {
        "no plan 'x'": pb.LoadRequest(plan="x"),
        "targets are for": pb.LoadRequest(plan=plan, targets=[target]),
    }
    for message, request in requests.items():
        with connect(store) as connection, pytest.raises(InvalidRequestError, match=message):
            next(connection.load(request))
    for _ in range(2):
        with connect(store) as connection:
            assert list(connection.load(pb.LoadRequest(plan=plan)))[-1].done


def test_one_plan_serves_all_who_ask_the_same_until_the_files_change(
    start_store: Start, tmp_path: Path
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(3, 100))
    store = start_store(tmp_path / "models")

    def plan(**device_map: str) -> str:
        return plan_of(store, "m", **device_map)

    first = plan()
    assert plan() == first
    assert plan(layers="cpu") != first
    shutil.rmtree(tmp_path / "models" / "m")
    write_upstream(tmp_path / "models" / "m", random_tensors(2, 50))
    with (
        connect(store) as connection,
        pytest.raises(InvalidCheckpointError, match="plan the load again"),
    ):
        next(connection.load(pb.LoadRequest(plan=first)))
    assert plan() != first
    assert read_tensors(store.client().load("m")) == random_tensors(2, 50)


def test_a_device_map_that_forgets_a_tensor_names_it(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(12, 100))
    client = start_store(tmp_path / "models").client()
    with pytest.raises(InvalidRequestError, match=r"layers\.10\.w|layers\.0\.w"):
        client.load("m", {"layers.1": "cpu"})


@pytest.mark.parametrize("loads", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_loads_in_a_row_grow_neither_memory_nor_descriptors(
    start_store: Start, tmp_path: Path, loads: int
) -> None:
    """Upstream leaks 16 MB of address space per load and stops after 16,400 (WC9)."""
    write_upstream(tmp_path / "models" / "m", random_tensors(3, 100_000))
    store = start_store(tmp_path / "models")
    client = store.client()

    def load(count: int) -> None:
        for _ in range(count):
            client.load("m")

    load(100)
    wait_until(lambda: client.status().leases == 0)
    before = open_descriptors(store.pid), resident_bytes(store.pid)
    mine = open_descriptors(os.getpid())
    load(loads)
    wait_until(lambda: client.status().leases == 0)
    assert open_descriptors(store.pid) <= before[0] + 3
    assert resident_bytes(store.pid) <= before[1] + 8 * MB
    assert open_descriptors(os.getpid()) <= mine + 3


@pytest.mark.parametrize("seen_by", ["list", "load"])
def test_memory_of_a_checkpoint_that_went_is_freed_though_it_was_pinned(
    start_store: Start, tmp_path: Path, seen_by: str
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(2, MB))
    store = start_store(tmp_path / "models")
    client = store.client()
    client.set_pinned("m", pinned=True)
    held = client.load("m")
    bytes_before = read_tensors(held)
    shutil.rmtree(tmp_path / "models" / "m")
    if seen_by == "list":
        assert client.list_models() == []
    else:
        with pytest.raises(CheckpointNotFoundError):
            client.load("m")
    assert read_tensors(held) == bytes_before
    assert client.status().pool_used_bytes > 0
    del held
    gc.collect()
    wait_until(lambda: client.status().pool_used_bytes == 0)
