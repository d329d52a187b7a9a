"""Models in GPU memory that processes share: one copy, held by whoever maps it, gone with them."""

from __future__ import annotations

import contextlib
import signal
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sllm_store.errors import InUseError, InvalidRequestError
from tests.store_process import random_tensors, wait_until, write_upstream

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from sllm_store.client import SllmStoreClient
    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]
    Begin = Callable[..., subprocess.Popen[str]]
    Run = Callable[..., str]

MB = 1 << 20
GPUS = [f"a0a1a2a3-a4a5-a6a7-a8a9-aaabacadae0{i}" for i in range(2)]
ON_GPU_0 = {"": GPUS[0]}
COUNT, SIZE = 6, 700_001
ARENA_BYTES = COUNT * SIZE


@pytest.fixture
def begin(start_gpu_client: Begin) -> Iterator[Begin]:
    """Start clients that share m and hold it; what is left of them is killed in the end."""
    begun: list[subprocess.Popen[str]] = []

    def start(store: StoreProcess, *arguments: object, **settings: str) -> subprocess.Popen[str]:
        process = start_gpu_client("hold_shared", store.address, *arguments, **settings)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def start_gpu_store(start_store: Start, tmp_path: Path, gpu_environment: dict[str, str]) -> Start:
    """Start a store of the model m that sees the fake GPUs."""

    def start(env: dict[str, str] | None = None, **settings: object) -> StoreProcess:
        root = tmp_path / "models"
        if not root.exists():
            write_upstream(root / "m", random_tensors(COUNT, SIZE))
        return start_store(root, env=gpu_environment | (env or {}), **settings)

    return start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tier_of(process: subprocess.Popen[str]) -> str:
    """Return where a client's shared load came from, once it holds it."""
    assert process.stdout is not None
    tier = process.stdout.readline().strip()
    assert tier, process.communicate()[1]
    return tier


def end(process: subprocess.Popen[str]) -> None:
    """Let a client look at its memory once more, and end."""
    out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert out == "still there\n"


def allocations(store: StoreProcess) -> int:
    """Return how much memory of the fake GPUs a store has: every allocation is a descriptor."""
    count = 0
    for link in Path(f"/proc/{store.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "fake-cuda" in str(link.readlink())
    return count


def resident(client: SllmStoreClient, gpu: int = 0) -> int:
    return client.status().resident_bytes[GPUS[gpu]]


def test_processes_share_one_copy_and_the_last_one_takes_it_along(
    start_gpu_store: Start, begin: Begin
) -> None:
    store = start_gpu_store()
    client = store.client()
    assert client.status().resident_bytes == {GPUS[0]: 0, GPUS[1]: 0}
    first = begin(store)
    assert tier_of(first) == "disk"
    size = resident(client)
    assert ARENA_BYTES < size < ARENA_BYTES + 64 * 256
    others = [begin(store) for _ in range(3)]
    assert [tier_of(process) for process in others] == ["device"] * 3
    assert resident(client) == size
    assert client.status().leases == 4
    (listed,) = client.list_models()
    assert [(a.device, a.size_bytes, a.pinned, a.leases) for a in listed.resident] == [
        (GPUS[0], size, False, 4)
    ]
    for process in (first, *others):
        assert resident(client) == size
        end(process)
    wait_until(lambda: resident(client) == 0)
    wait_until(lambda: allocations(store) == 0)
    assert client.list_models()[0].resident == ()


def test_loads_at_once_fill_an_arena_once(start_gpu_store: Start, begin: Begin) -> None:
    store = start_gpu_store({"FAKE_CUDA_COPY_DELAY_US": "20000"})
    processes = [begin(store) for _ in range(4)]
    assert sorted(map(tier_of, processes)) == ["device"] * 3 + ["disk"]
    for process in processes:
        end(process)


def test_a_killed_client_gives_its_share_back(start_gpu_store: Start, begin: Begin) -> None:
    store = start_gpu_store()
    client = store.client()
    victim, other = begin(store), begin(store)
    assert {tier_of(victim), tier_of(other)} <= {"disk", "device"}
    victim.kill()
    wait_until(lambda: client.status().leases == 1)
    assert resident(client) > 0
    other.kill()
    wait_until(lambda: resident(client) == 0)
    assert client.status().leases == 0


@pytest.mark.parametrize("after_s", [0.0, 0.15])
def test_a_client_killed_while_its_arena_is_filled_frees_it(
    start_gpu_store: Start, start_gpu_client: Begin, after_s: float
) -> None:
    store = start_gpu_store({"FAKE_CUDA_COPY_DELAY_US": "300000"})
    client = store.client()
    with start_gpu_client("shared_forever", store.address) as victim:
        wait_until(lambda: client.status().loads_running == 1)
        if after_s:
            assert victim.stdout is not None
            wait_until(lambda: resident(client) > 0)
        victim.kill()
    wait_until(lambda: client.status().loads_running == 0)
    wait_until(lambda: resident(client) == 0)
    wait_until(lambda: allocations(store) == 0)


def test_one_process_may_share_a_model_several_times(
    start_gpu_store: Start, run_gpu_client: Run
) -> None:
    run_gpu_client("share_twice", start_gpu_store().address)


def test_a_model_may_be_spread_over_gpus_and_the_host(
    start_gpu_store: Start, run_gpu_client: Run
) -> None:
    store = start_gpu_store()
    run_gpu_client("share_split", store.address)
    client = store.client()
    wait_until(lambda: resident(client, 0) == resident(client, 1) == 0)


def test_what_nobody_holds_stays_within_the_gpu_pool(start_gpu_store: Start, begin: Begin) -> None:
    store = start_gpu_store(gpu_pool_bytes=8 * MB)
    client = store.client()
    assert client.status().gpu_pool_bytes == 8 * MB
    tiers = []
    for gpu in (0, 0, 1):
        process = begin(store, gpu)
        tiers.append(tier_of(process))
        end(process)
    assert tiers == ["disk", "device", "device"]  # The last from the other GPU.
    assert resident(client, 0) == resident(client, 1) > 0
    client.clear_mem()
    assert resident(client, 0) == resident(client, 1) == 0


def test_a_load_into_a_full_gpu_evicts_what_nobody_holds(
    start_gpu_store: Start, begin: Begin, tmp_path: Path
) -> None:
    store = start_gpu_store({"FAKE_CUDA_MEMORY": str(14 * MB)}, gpu_pool_bytes=64 * MB)
    for name in ("a", "b"):
        write_upstream(tmp_path / "models" / name, random_tensors(COUNT, SIZE))
    client = store.client()
    for name in ("a", "b"):
        client.set_pinned(name, pinned=True, device_map=ON_GPU_0)
        client.set_pinned(name, pinned=False, device_map=ON_GPU_0)
    process = begin(store)
    assert tier_of(process) == "disk"
    listed = {model.name: bool(model.resident) for model in client.list_models()}
    assert listed == {"a": False, "b": True, "m": True}
    end(process)


def test_a_gpu_that_is_full_says_of_what(
    start_gpu_store: Start, run_gpu_client: Run, tmp_path: Path
) -> None:
    store = start_gpu_store({"FAKE_CUDA_MEMORY": str(8 * MB)})
    write_upstream(tmp_path / "models" / "a", random_tensors(COUNT, SIZE))
    client = store.client()
    client.set_pinned("a", pinned=True, device_map=ON_GPU_0)
    message = r"free of 8\.0 MB.*the store keeps there: a \(4\.0 MB, pinned\)"
    assert run_gpu_client("share_fails", store.address, message) == "OutOfDeviceMemoryError\n"
    client.set_pinned("a", pinned=False, device_map=ON_GPU_0)
    run_gpu_client("share_twice", store.address)


def test_a_pinned_model_stays_until_it_is_unpinned_or_unloaded(
    start_gpu_store: Start, begin: Begin
) -> None:
    store = start_gpu_store()
    client = store.client()
    client.set_pinned("m", pinned=True, device_map=ON_GPU_0)
    size = resident(client)
    process = begin(store)
    assert tier_of(process) == "device"
    (listed,) = client.list_models()
    assert [(a.pinned, a.leases) for a in listed.resident] == [(True, 1)]
    assert not listed.pinned
    end(process)
    assert resident(client) == size > 0
    client.set_pinned("m", pinned=False, device_map=ON_GPU_0)
    wait_until(lambda: resident(client) == 0)
    with pytest.raises(InvalidRequestError, match="not in the memory of GPU"):
        client.set_pinned("m", pinned=False, device_map=ON_GPU_0)
    client.set_pinned("m", pinned=True, device_map=ON_GPU_0)
    client.unload_from_cpu("m")
    assert resident(client) == size
    client.unload_from_gpu("m")
    assert resident(client) == 0


def test_a_model_in_use_is_not_unloaded(start_gpu_store: Start, begin: Begin) -> None:
    store = start_gpu_store(unload_timeout_s=0.2)
    client = store.client()
    process = begin(store)
    tier_of(process)
    with ThreadPoolExecutor(2) as threads:
        frees = threads.submit(client.clear_mem), threads.submit(client.unload_from_gpu, "m")
        for free in frees:
            with pytest.raises(InUseError, match=r"m is in GPU memory for client gpu_cases\.py"):
                free.result()
    end(process)
    client.unload_from_gpu("m")


def test_files_that_change_retire_an_arena(
    start_gpu_store: Start, begin: Begin, tmp_path: Path
) -> None:
    store = start_gpu_store()
    client = store.client()
    client.set_pinned("m", pinned=True, device_map=ON_GPU_0)
    old = begin(store)
    assert tier_of(old) == "device"
    size = resident(client)
    for path in (tmp_path / "models" / "m").iterdir():
        path.unlink()
    (tmp_path / "models" / "m").rmdir()
    write_upstream(tmp_path / "models" / "m", random_tensors(COUNT, SIZE, seed=1))
    new = begin(store, 0, 1)
    assert tier_of(new) == "disk"
    assert resident(client) == 2 * size
    end(old)
    wait_until(lambda: resident(client) == size)
    end(new)
    wait_until(lambda: resident(client) == 0)


@pytest.mark.parametrize("device", [0, 1])
def test_a_private_load_copies_from_a_resident_arena(
    start_gpu_store: Start, run_gpu_client: Run, device: int
) -> None:
    store = start_gpu_store()
    client = store.client()
    client.set_pinned("m", pinned=True, device_map=ON_GPU_0)
    client.unload_from_cpu("m")
    run_gpu_client("private", store.address, device, "device")
    assert client.status().pool_used_bytes == 0
    assert client.status().leases == 0
    client.unload_from_gpu("m")
    run_gpu_client("private", store.address, device, "disk")


def test_a_private_load_of_a_part_copies_from_an_arena_that_has_it(
    start_gpu_store: Start, run_gpu_client: Run
) -> None:
    store = start_gpu_store()
    store.client().set_pinned("m", pinned=True, device_map=ON_GPU_0)
    run_gpu_client("private_part", store.address, "host")


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("cuMemAlloc_v2:3", "cannot allocate on GPU 0"),  # At start each link is measured.
        ("cuIpcGetMemHandle:1", "cannot share memory of GPU 0"),
        ("cuStreamCreate:1", "copy to the GPU failed"),
    ],
)
def test_a_driver_error_fails_one_load_and_leaves_nothing(
    start_gpu_store: Start, run_gpu_client: Run, failing: str, message: str
) -> None:
    store = start_gpu_store({"FAKE_CUDA_FAIL": failing})
    client = store.client()
    assert run_gpu_client("share_fails", store.address, message) == "DeviceError\n"
    assert resident(client) == 0
    wait_until(lambda: allocations(store) == 0)
    run_gpu_client("share_twice", store.address)


def test_a_client_that_cannot_map_gives_its_lease_back(
    start_gpu_store: Start, run_gpu_client: Run
) -> None:
    """Upstream's client never looks at what the driver says (WC2)."""
    store = start_gpu_store()
    client = store.client()
    out = run_gpu_client(
        "share_fails",
        store.address,
        "cannot map the store's memory on GPU",
        FAKE_CUDA_FAIL="cuIpcOpenMemHandle_v2",
    )
    assert out == "DeviceError\n"
    wait_until(lambda: client.status().leases == 0 and resident(client) == 0)


def test_a_lease_that_is_not_taken_ends_with_its_call(
    start_gpu_store: Start, run_gpu_client: Run
) -> None:
    store = start_gpu_store()
    run_gpu_client("held_and_not_mapped", store.address)
    client = store.client()
    wait_until(lambda: resident(client) == 0)


def test_what_a_client_maps_outlives_a_killed_store_as_long_as_the_driver_keeps_it(
    start_gpu_store: Start, begin: Begin
) -> None:
    """The driver that stands in for CUDA keeps it; the documents say what CUDA promises."""
    store = start_gpu_store()
    process = begin(store)
    tier_of(process)
    store.stop(signal.SIGKILL)
    end(process)


def test_shared_loads_in_a_row_grow_nothing(start_gpu_store: Start, run_gpu_client: Run) -> None:
    store = start_gpu_store()
    run_gpu_client("share_twice", store.address)
    for _ in range(3):
        run_gpu_client("share_twice", store.address)
    client = store.client()
    wait_until(lambda: resident(client) == 0)
    wait_until(lambda: allocations(store) == 0)


def test_metrics_say_what_is_resident(start_gpu_store: Start) -> None:
    port = free_port()
    store = start_gpu_store(metrics_port=port)
    store.client().set_pinned("m", pinned=True, device_map=ON_GPU_0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    told = [float(values[f'sllm_store_gpu_resident_bytes{{gpu="{gpu}"}}']) for gpu in GPUS]
    assert told == [resident(store.client()), 0.0]
