"""GPU loads take the links that the store may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.store_process import StoreProcess, random_tensors, write_upstream

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
