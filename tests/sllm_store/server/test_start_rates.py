"""What a store knows of its disk and its links before the first load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.disks import DiskMemory, disk_of, read_use
from sllm_store.server.estimate import DISK
from sllm_store.server.start_rates import disk_rate
from tests.store_process import random_tensors, write_upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

MB = 1 << 20


def test_a_disk_is_as_fast_as_other_processes_have_seen_it(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert disk_rate(tmp_path, "auto", environ) == {}
    assert disk_rate(tmp_path / "absent", "auto", environ) == {}
    memory = DiskMemory(tmp_path / "serverless-llm" / "disks")
    disk = disk_of(tmp_path)
    tuner = memory.tuner(disk, read_use("auto"))
    tuner.begin(1)
    for second in range(60):
        tuner.add(256 * MB, float(second))
    tuner.end()
    memory.keep(disk, read_use("auto"))
    assert disk_rate(tmp_path, "auto", environ) == {DISK: pytest.approx(256 * MB, rel=0.01)}


def test_links_are_measured_where_memory_is_pinned(run_gpu_client: Callable[..., str]) -> None:
    """Not before, and a GPU has its neighbours' links too."""
    run_gpu_client("link_rates", "")
    run_gpu_client("no_link_rates", "", FAKE_CUDA_MEMORY=str(MB))


def test_a_new_store_believes_what_the_disk_did_for_others(
    tmp_path: Path, start_store: Callable[..., StoreProcess]
) -> None:
    write_upstream(tmp_path / "models" / "m", random_tensors(3, 4 * MB))
    memory = DiskMemory(tmp_path / "cache" / "serverless-llm" / "disks")
    disk = disk_of(tmp_path)
    tuner = memory.tuner(disk, read_use("auto"))
    tuner.begin(1)
    for second in range(60):
        tuner.add(32 * MB, float(10 * second))
    tuner.end()
    memory.keep(disk, read_use("auto"))
    store = start_store(tmp_path / "models", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    os.sync()
    for path in (tmp_path / "models" / "m").iterdir():
        native.File(str(path)).evict()
    estimate = store.client().estimate_load("m")
    assert estimate.samples == 0
    assert estimate.disk_bytes > 0
    assert estimate.seconds > estimate.disk_bytes / (4 * MB)
