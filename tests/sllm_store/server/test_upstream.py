"""ServerlessLLM's own protocol: its client's way to load, and every way to break its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store.errors import (
    CheckpointNotFoundError,
    DeadlineError,
    InUseError,
    InvalidCheckpointError,
    InvalidRequestError,
    ReadError,
    StoreError,
)
from sllm_store.proto import storage_pb2 as pb
from tests.store_process import (
    open_descriptors,
    random_tensors,
    read_tensors,
    wait_until,
    write_upstream,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]
    Run = Callable[..., str]

MB = 1 << 20

WIRE = {
    "GetServerConfigResponse": {"mem_pool_size": 1, "chunk_size": 2},
    "RegisterModelRequest": {"model_path": 1},
    "RegisterModelResponse": {"model_path": 1, "model_size": 2},
    "MemCopyChunk": {"src_offset": 1, "size": 2, "dst_offset": 3, "handle_idx": 4},
    "MemCopyChunkList": {"chunks": 1},
    "MemCopyHandle": {"cuda_ipc_handle": 1},
    "MemCopyHandleList": {"handles": 1},
    "LoadModelRequest": {
        "model_path": 1,
        "replica_uuid": 2,
        "chunks": 3,
        "handles": 4,
        "target_device_type": 5,
    },
    "LoadModelResponse": {"model_path": 1},
    "ConfirmModelRequest": {"model_path": 1, "replica_uuid": 2, "target_device_type": 3},
    "ConfirmModelResponse": {"model_path": 1, "code": 2},
    "UnloadModelRequest": {"model_path": 1, "replica_uuid": 2, "target_device_type": 3},
    "UnloadModelResponse": {"model_path": 1, "code": 2},
}
METHODS = [
    "LoadModelAsync",
    "ConfirmModel",
    "UnloadModel",
    "ClearMem",
    "RegisterModel",
    "GetServerConfig",
]


def test_the_wire_is_upstreams_field_for_field() -> None:
    messages = pb.DESCRIPTOR.message_types_by_name
    for name, numbers in WIRE.items():
        assert {f.name: f.number for f in messages[name].fields} == numbers
    service = pb.DESCRIPTOR.services_by_name["Storage"]
    assert service.full_name == "storage.Storage"
    assert [method.name for method in service.methods] == METHODS
    assert dict(pb.DeviceType.items()) == {
        "DEVICE_TYPE_DISK": 0,
        "DEVICE_TYPE_CPU": 1,
        "DEVICE_TYPE_GPU": 2,
    }


def test_a_preload_is_confirmed_and_unloaded(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(5, 2_000_003))
    store = start_store(tmp_path / "models")
    client = store.client()
    assert client.get_server_config() == {"chunk_size": 2 * MB, "mem_pool_size": 64 * MB}
    client.load_into_cpu("m")
    client.confirm_model_loaded("m")
    assert client.status().pool_used_bytes == 10 * MB
    client.unload_from_cpu("m")
    assert client.status().pool_used_bytes == 0
    client.load_into_cpu("m")
    wait_until(lambda: client.status().pool_used_bytes > 0)
    client.clear_mem()
    assert client.status().pool_used_bytes == 0


@pytest.mark.parametrize("size", [7, 1000 + 3, 5 * MB + 256, 5 * MB + 1000])
def test_sizes_that_are_no_multiple_of_a_block_load_whole(
    start_store: Start, tmp_path: Path, size: int
) -> None:
    tensors = random_tensors(3, size)
    write_upstream(tmp_path / "models" / "m", tensors)
    for mode in ("direct", "buffered"):
        store = start_store(tmp_path / "models", read_mode=mode)
        assert read_tensors(store.client().load("m")) == tensors


def test_a_client_of_upstreams_kind_loads_to_a_gpu(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(40, 300_001))
    store = start_store(tmp_path / "models", gpu_environment)
    for _ in range(2):
        run_gpu_client("upstream", store.address, 40, 300_001)


def test_no_request_can_harm_the_server(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(4, MB))
    store = start_store(tmp_path / "models", gpu_environment)
    run_gpu_client("refused", store.address)
    run_gpu_client("load", store.address, 4, MB)


@pytest.mark.parametrize("name", ["", "../m", "/etc", "m/../../x", "no such", "a\0b", "."])
def test_a_name_outside_the_storage_path_is_refused(
    start_store: Start, tmp_path: Path, name: str
) -> None:
    write_upstream(tmp_path / "m", random_tensors(1, 10))
    (tmp_path / "models").mkdir()
    client = start_store(tmp_path / "models").client()
    for call in (client.register_model, client.load_into_cpu, client.load):
        with pytest.raises((InvalidRequestError, CheckpointNotFoundError)):
            call(name)


def test_registration_can_be_required(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(1, 10))
    client = start_store(tmp_path / "models", registration_required=True).client()
    with pytest.raises(InvalidRequestError, match="RegisterModel first"):
        client.load_into_cpu("m")
    assert client.register_model("m") == 16
    client.load_into_cpu("m")
    client.confirm_model_loaded("m")


def test_a_changed_checkpoint_is_opened_again(start_store: Start, tmp_path: Path) -> None:
    """Upstream caches a registration for ever (WB4)."""
    path = tmp_path / "models" / "m"
    write_upstream(path, random_tensors(1, 8_000))
    client = start_store(tmp_path / "models").client()
    assert client.register_model("m") == 8_000
    first = client.load("m")
    path.rename(tmp_path / "old")
    write_upstream(path, random_tensors(1, 12_000, seed=1))
    assert client.register_model("m") == 12_000
    assert read_tensors(client.load("m")) == random_tensors(1, 12_000, seed=1)
    assert read_tensors(first) == random_tensors(1, 8_000)


def test_a_truncated_partition_is_an_error_and_nothing_else(
    start_store: Start, tmp_path: Path
) -> None:
    """Upstream hangs on a read error (WC8)."""
    write_upstream(tmp_path / "models" / "bad", random_tensors(4, 3 * MB))
    write_upstream(tmp_path / "models" / "good", random_tensors(2, 3 * MB))
    client = start_store(tmp_path / "models").client()
    client.register_model("bad")
    data = tmp_path / "models" / "bad" / "tensor.data_0"
    with data.open("r+b") as file:
        file.truncate(5 * MB)
    with pytest.raises((InvalidCheckpointError, ReadError)):
        client.load("bad")
    assert read_tensors(client.load("good")) == random_tensors(2, 3 * MB)
    assert [model.name for model in client.list_models() if model.error] == ["bad"]


def test_a_model_larger_than_the_pool_streams_to_a_gpu(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    """Upstream dies of it (WC3)."""
    write_upstream(tmp_path / "models" / "m", random_tensors(20, 3 * MB))
    store = start_store(tmp_path / "models", gpu_environment, pool_bytes=20 * MB)
    out = run_gpu_client("load", store.address, 20, 3 * MB, FAKE_CUDA_COPY_DELAY_US="200")
    assert out.split() == ["disk", "mixed"]


def test_clearing_memory_and_then_filling_the_pool_is_safe(
    start_store: Start, tmp_path: Path
) -> None:
    """Upstream dereferences a cleared model (WC4)."""
    for name in "abc":
        write_upstream(tmp_path / "models" / name, random_tensors(4, 5 * MB))
    client = start_store(tmp_path / "models").client()
    for _ in range(3):
        for name in "abc":
            client.load_into_cpu(name)
            client.confirm_model_loaded(name)
        client.clear_mem()


def test_unloading_and_loading_again_never_gives_stale_bytes(
    start_store: Start, tmp_path: Path
) -> None:
    """Upstream reports success with wrong weights once in 200 reloads (WA7)."""
    tensors = {name: random_tensors(3, 2 * MB, seed=ord(name)) for name in "ab"}
    for name, content in tensors.items():
        write_upstream(tmp_path / "models" / name, content)
    client = start_store(tmp_path / "models", pool_bytes=8 * MB).client()
    for _ in range(25):
        for name in "ab":
            client.load_into_cpu(name)
            if name == "a":
                client.unload_from_cpu(name)
            loaded = client.load(name)
            assert read_tensors(loaded) == tensors[name]
            del loaded


def test_unload_says_who_uses_a_model(start_store: Start, tmp_path: Path) -> None:
    """Upstream hangs for ever when a load is running (WC7)."""
    write_upstream(tmp_path / "models" / "m", random_tensors(1, MB))
    store = start_store(tmp_path / "models", unload_timeout_s=0.2)
    loaded = store.client().load("m")
    with pytest.raises((InUseError, DeadlineError), match=r"m is in use by client .*\[\d+\]"):
        store.client().unload_from_cpu("m")
    del loaded
    store.client().unload_from_cpu("m")


def test_a_failing_device_fails_one_load_and_nothing_else(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(4, 3_000_000))
    # The first copy: what is read before the link is open leaves in one, so there may be no second.
    failing = gpu_environment | {"FAKE_CUDA_FAIL": "cuMemcpyHtoDAsync_v2:1"}
    store = start_store(tmp_path / "models", failing)
    run_gpu_client("fails_once", store.address, "copy to the GPU failed")
    assert store.client().status().pool_used_bytes > 0


def test_a_client_without_device_memory_fails_alone(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    """Upstream's server exits when its client's GPU is full (WC1, WC2)."""
    write_upstream(tmp_path / "models" / "m", random_tensors(4, 3_000_000))
    store = start_store(tmp_path / "models", gpu_environment)
    run_gpu_client("no_memory", store.address, FAKE_CUDA_MEMORY=str(4 * MB))
    run_gpu_client("load", store.address, 4, 3_000_000)


def test_a_client_killed_during_its_load_leaves_nothing_behind(
    start_store: Start,
    tmp_path: Path,
    gpu_environment: dict[str, str],
    start_gpu_client: Callable[..., subprocess.Popen[str]],
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(30, 3_000_000))
    slow = gpu_environment | {"FAKE_CUDA_COPY_DELAY_US": "30000"}
    store = start_store(tmp_path / "models", slow, pool_bytes=128 * MB)
    client = store.client()
    before = open_descriptors(store.pid)
    for _ in range(3):
        with start_gpu_client("forever", store.address) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "loading\n"
            victim.kill()
            victim.communicate()
        wait_until(lambda: client.status().loads_running == 0)
        wait_until(lambda: client.status().sessions == 0)
    client.clear_mem()
    assert client.status().pool_used_bytes == 0
    assert open_descriptors(store.pid) <= before + 2
    assert len(read_tensors(client.load("m"))) == 30


def test_six_loads_at_once_to_two_gpus_are_right(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(10, 2_000_003))
    store = start_store(tmp_path / "models", gpu_environment, pool_bytes=12 * MB)
    run_gpu_client("parallel", store.address, 10, 2_000_003)


def test_a_model_can_be_split_over_gpus(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(12, 500_001))
    store = start_store(tmp_path / "models", gpu_environment)
    run_gpu_client("split", store.address, 12, 500_001)


def test_an_unknown_device_type_is_refused(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(1, 10))
    client = start_store(tmp_path / "models").client()
    request = pb.LoadModelRequest(model_path="m", target_device_type=pb.DEVICE_TYPE_DISK)
    with pytest.raises(StoreError, match="CPU or GPU"):
        client._call(client._storage.LoadModelAsync, request)
