"""GPU loads take the links that the store may use; compressed loads go anywhere, in any mixture."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sllm_store import native
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import ChecksumError
from tests.store_process import (
    StoreProcess,
    random_tensors,
    read_tensors,
    wait_until,
    weight_tensors,
    write_checkpoint,
    write_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., StoreProcess]
Run = Callable[..., str]
MB = 1 << 20
COUNT, SIZE = 20, 3_000_000


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    write_upstream(tmp_path / "models" / "m", random_tensors(COUNT, SIZE))
    return tmp_path / "models"


def test_memory_allocated_for_a_model_that_has_changed_or_gone_is_given_back(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    (tmp_path / "models").mkdir()
    store = start_store(tmp_path / "models", gpu_environment)
    run_gpu_client("load_again", store.address, tmp_path / "models" / "m")


def test_the_first_load_allocates_while_the_store_plans(
    start_store: Start, tmp_path: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    model = tmp_path / "models" / "published"
    model.mkdir(parents=True)
    save_file(
        {f"w{digit}": torch.full((700_160,), ord(digit), dtype=torch.uint8) for digit in "0123"},
        model / "model.safetensors",
    )
    store = start_store(tmp_path / "models", gpu_environment)
    run_gpu_client("load_guessed", store.address, model)


@pytest.mark.parametrize("fan_in", [None, (0, 1), (1,)])
def test_neighbours_carry_a_part_of_a_load(
    storage: Path,
    start_store: Start,
    gpu_environment: dict[str, str],
    run_gpu_client: Run,
    *,
    fan_in: tuple[int, ...] | None,
) -> None:
    slow = gpu_environment | {"FAKE_CUDA_COPY_DELAY_US": "3000"}
    store = start_store(storage, slow, pool_bytes=128 * MB, fan_in=fan_in)
    run_gpu_client("load", store.address, COUNT, SIZE)
    run_gpu_client("split", store.address, COUNT, SIZE)
    run_gpu_client("parallel", store.address, COUNT, SIZE)


def test_a_failure_between_gpus_fails_the_load_alone(
    storage: Path, start_store: Start, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    failing = gpu_environment | {
        "FAKE_CUDA_COPY_DELAY_US": "3000",
        "FAKE_CUDA_FAIL": "cuMemcpyPeerAsync:1",
    }
    store = start_store(storage, failing, pool_bytes=128 * MB, fan_in=None)
    run_gpu_client("fails_once", store.address, "device 1 to device 0", COUNT)


def test_gpus_that_reach_no_other_cannot_lend_their_links(
    storage: Path, start_store: Start, gpu_environment: dict[str, str]
) -> None:
    with pytest.raises(AssertionError, match="GPU 0 cannot reach the memory of any other GPU"):
        start_store(storage, gpu_environment | {"FAKE_CUDA_PEERS": "0"}, fan_in=None)


TENSORS = (7, 3 * MB)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "models" / "m", weight_tensors(*TENSORS), compress=True)
    assert open_checkpoint(tmp_path / "models" / "m").is_compressed
    return tmp_path / "models"


def corrupt(path: Path) -> None:
    """Break the header of a segment in the middle; reading alone does not find that."""
    segment = open_checkpoint(path).extents[3].segments[1]
    with (path / "tensor.data_0").open("r+b") as file:
        file.seek(segment.offset)
        file.write(b"????")


def test_every_byte_arrives_on_gpus_and_beside_them(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    store = start_store(models, gpu_environment)
    run_gpu_client("compressed", store.address, models / "m", *TENSORS)


def test_what_no_pool_holds_is_decoded_on_its_way_through_a_ring(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    store = start_store(models, gpu_environment, pool_bytes=4 * MB)
    run_gpu_client("compressed_to_gpus", store.address, *TENSORS)


def test_a_shared_arena_is_decoded_once_and_copied_from(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    store = start_store(models, gpu_environment)
    run_gpu_client("compressed_shared", store.address, *TENSORS)


def test_a_driver_that_refuses_to_decode_fails_that_load_alone(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    store = start_store(models, gpu_environment | {"FAKE_CUDA_FAIL": "cuLaunchKernel:1"})
    run_gpu_client("compressed_fails_once", store.address, "cuLaunchKernel", *TENSORS)


@pytest.mark.slow
def test_smollm2_is_the_same_through_every_path(  # noqa: PLR0917
    models: Path,
    smollm2: Path,
    start_store: Start,
    gpu_environment: dict[str, str],
    run_gpu_client: Run,
) -> None:
    import_checkpoint(smollm2, models / "plain", dtype="bfloat16")
    report = import_checkpoint(smollm2, models / "small", dtype="bfloat16", compress=True)
    assert report.compression is not None
    assert report.compression.stored_bytes < 0.75 * report.size_bytes
    memory = {"FAKE_CUDA_MEMORY": str(1 << 30)}
    store = start_store(models, gpu_environment | memory, pool_bytes=400 * MB)
    run_gpu_client("alike", store.address, models, **memory)


def test_a_host_load_is_decoded_and_lets_the_pool_go(start_store: Start, models: Path) -> None:
    client = start_store(models).client()
    for tier in ("disk", "host"):
        seen: list[tuple[int, int]] = []
        loaded = client.load("m", on_progress=lambda done, total: seen.append((done, total)))  # noqa: B023
        assert loaded.tier == tier
        assert isinstance(loaded.arenas[0], native.HostBuffer)
        assert read_tensors(loaded) == weight_tensors(*TENSORS)
        assert seen[-1][0] == seen[-1][1]
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    wait_until(lambda: client.status().leases == 0)
    stored = open_checkpoint(models / "m").stored_bytes
    assert stored < client.status().pool_used_bytes < 1.3 * stored
    client.unload_from_cpu("m")


def test_a_part_on_the_host_takes_only_its_own_memory(start_store: Start, models: Path) -> None:
    client = start_store(models).client()
    whole, expected = client.load("m"), weight_tensors(*TENSORS)
    assert all(tensor.offset_bytes % 256 == 0 for tensor in whole.tensors)
    arena = whole.arenas[0]
    assert arena is not None
    assert sum(map(len, expected.values())) <= arena.size < 1.01 * sum(map(len, expected.values()))


def test_many_clients_load_one_model_at_once(start_store: Start, models: Path) -> None:
    store = start_store(models)
    clients = [store.client() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for loaded in threads.map(lambda client: client.load("m"), clients):
            assert read_tensors(loaded) == weight_tensors(*TENSORS)


def test_a_pinned_model_stays_as_it_is_stored(start_store: Start, models: Path) -> None:
    client = start_store(models).client()
    client.set_pinned("m", pinned=True)
    (model,) = client.list_models()
    checkpoint = open_checkpoint(models / "m")
    assert model.size_bytes == checkpoint.size_bytes
    assert checkpoint.stored_bytes <= model.host_bytes < checkpoint.size_bytes
    assert client.load("m").tier == "host"


def test_a_corrupt_segment_fails_the_load_and_nothing_else(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    write_checkpoint(models / "n", weight_tensors(2, 500_000), compress=True)
    corrupt(models / "m")
    store = start_store(models, gpu_environment)
    run_gpu_client("corrupt", store.address)


def test_a_client_on_the_host_names_a_corrupt_segment(start_store: Start, models: Path) -> None:
    corrupt(models / "m")
    client = start_store(models).client()
    with pytest.raises(ChecksumError, match=r"corrupt.*verify the checkpoint"):
        client.load("m")
    wait_until(lambda: client.status().leases == 0)


def test_upstreams_clients_are_told_to_save_it_without_compression(
    start_store: Start, models: Path, gpu_environment: dict[str, str], run_gpu_client: Run
) -> None:
    store = start_store(models, gpu_environment)
    run_gpu_client("refused_compressed", store.address, "m is compressed.*without --compress")
    client = store.client()
    client.load_into_cpu("m")
    client.confirm_model_loaded("m")
    assert client.load("m").tier == "host"
