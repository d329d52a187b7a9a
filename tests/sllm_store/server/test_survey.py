"""Estimates of a running store: where it looks, what it learned, and what it remembers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.errors import CheckpointNotFoundError, DeviceError, InvalidRequestError
from sllm_store.server.survey import cached_part
from tests.store_process import (
    random_tensors,
    wait_until,
    weight_tensors,
    write_checkpoint,
    write_upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]

MB = 1 << 20


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A storage path with one checkpoint of about 12 MB."""
    write_upstream(tmp_path / "models" / "m", random_tensors(3, 4 * MB))
    return tmp_path / "models"


def evict(models: Path) -> None:
    os.sync()
    for path in (models / "m").iterdir():
        native.File(str(path)).evict()


def test_an_estimate_says_where_the_bytes_are(models: Path, start_store: Start) -> None:
    client = start_store(models).client()
    cached = client.estimate_load("m")
    assert (cached.disk_bytes, cached.host_bytes, cached.device_bytes) == (0, 0, 0)
    assert 12 * MB <= cached.cached_bytes <= 13 * MB
    evict(models)
    cold = client.estimate_load("m")
    assert (cold.disk_bytes, cold.cached_bytes) == (cached.cached_bytes, 0)
    client.load("m")
    warm = client.estimate_load("m")
    assert (warm.disk_bytes, warm.cached_bytes) == (0, 0)
    assert 12 * MB <= warm.host_bytes <= 14 * MB
    assert warm.seconds < cold.seconds


def test_an_estimate_learns_from_loads_and_a_new_store_remembers(
    models: Path, start_store: Start, tmp_path: Path
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    store = start_store(models, env=env)
    client = store.client()
    assert client.estimate_load("m").samples == 0
    for _ in range(3):
        client.load("m")
        client.unload_from_cpu("m")
    known = client.estimate_load("m")
    assert known.samples == 3
    store.stop()
    assert len(list((tmp_path / "cache" / "serverless-llm" / "loads").iterdir())) == 1
    again = start_store(models, env=env).client().estimate_load("m")
    assert again.samples == 3
    # Of the lanes; what was particular about this model's last loads is not remembered.
    assert again.seconds == pytest.approx(known.seconds, rel=0.5)


def test_an_estimate_is_of_the_size_of_what_the_load_takes(
    models: Path, start_store: Start
) -> None:
    client = start_store(models).client()
    for _ in range(6):
        client.load("m")
        client.unload_from_cpu("m")
    estimated_s = client.estimate_load("m").seconds
    started_s = time.monotonic()
    client.load("m")
    took_s = time.monotonic() - started_s
    assert estimated_s / 10 < took_s < estimated_s * 10  # This machine may be busy.


def test_what_the_client_decodes_is_part_of_the_estimate(
    tmp_path: Path, start_store: Start
) -> None:
    write_checkpoint(tmp_path / "models" / "c", weight_tensors(3, 12 * MB), compress=True)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    client = start_store(tmp_path / "models", env=env).client()
    guess = client.estimate_load("c")
    took: list[float] = []
    for _ in range(4):
        started_s = time.monotonic()
        client.load("c")
        took.append(time.monotonic() - started_s)
    wait_until(lambda: client.status().leases == 0)
    known = client.estimate_load("c")
    assert (guess.samples, known.samples) == (0, 4)
    assert (known.disk_bytes, known.cached_bytes) == (0, 0)
    assert known.seconds > min(took) / 3  # Mapping alone takes a hundredth of it.
    assert known.seconds < 3 * max(took)


def test_nothing_is_held_or_loaded_for_an_estimate(models: Path, start_store: Start) -> None:
    client = start_store(models).client()
    client.estimate_load("m")
    status = client.status()
    assert (status.leases, status.loads_running, status.pool_used_bytes) == (0, 0, 0)


def test_estimates_of_what_cannot_be_loaded_are_errors(models: Path, start_store: Start) -> None:
    client = start_store(models).client()
    with pytest.raises(CheckpointNotFoundError):
        client.estimate_load("absent")
    with pytest.raises(InvalidRequestError):
        client.estimate_load("")
    with pytest.raises(DeviceError, match="no GPU"):
        client.estimate_load("m", {"": "00000000-0000-0000-0000-000000000000"})


def test_estimates_know_gpus_and_what_is_resident_there(
    models: Path,
    start_store: Start,
    gpu_environment: dict[str, str],
    run_gpu_client: Callable[..., str],
) -> None:
    env = {**gpu_environment, "XDG_CACHE_HOME": str(models.with_name("cache"))}
    store = start_store(models, env=env, gpu_pool_bytes=64 * MB)
    said = run_gpu_client("estimates", store.address)
    assert said.split() == ["cached", "host", "copy", "mapped"]


def test_an_estimate_counts_what_the_client_needs_in_the_end(
    models: Path,
    start_store: Start,
    gpu_environment: dict[str, str],
    run_gpu_client: Callable[..., str],
) -> None:
    env = {**gpu_environment, "XDG_CACHE_HOME": str(models.with_name("cache"))}
    run_gpu_client("late", start_store(models, env=env).address)


def test_the_page_cache_is_asked_all_over_what_is_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * MB))
    os.sync()
    file = native.File(str(path))
    reads = [(0, start, 4 * MB, 0) for start in range(0, 32 * MB, 4 * MB)]
    assert cached_part([file], reads) == 1.0
    with path.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 16 * MB, 16 * MB, os.POSIX_FADV_DONTNEED)
    assert cached_part([file], reads) == pytest.approx(0.5, abs=0.05)
    file.evict()
    assert cached_part([file], reads) == 0.0
