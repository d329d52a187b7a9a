"""What the links of a machine are measured to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sllm_store.cli import bench_limits
from sllm_store.tiers.device import visible_gpus

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(70 * MB))
    return path


def test_direct_reads_are_tried_with_several_depths_and_the_best_counts(file: Path) -> None:
    rates = bench_limits.read_rates([file], direct=True)
    if not rates:
        pytest.skip("this file system has no direct I/O")
    assert [(rate.threads, rate.block_bytes) for rate in rates] == list(bench_limits.DIRECT_SWEEP)
    assert all(rate.bytes_per_s > 0 for rate in rates)
    assert bench_limits.best(rates) == max(rate.bytes_per_s for rate in rates)


def test_the_page_cache_is_read_through_it(file: Path) -> None:
    (rate,) = bench_limits.read_rates([file], direct=False)
    assert rate.bytes_per_s > 0


def test_files_too_small_to_tell_have_no_rate(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(100))
    assert bench_limits.read_rates([tmp_path / "small"], direct=True) == []
    assert bench_limits.best([]) == 0.0


def test_no_more_is_read_than_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = os.preadv

    def preadv(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        done = original(descriptor, buffers, offset)
        read.append(done)
        return done

    monkeypatch.setattr(os, "preadv", preadv)
    bench_limits.read_rates([file], direct=False, bytes_max=16 * MB)
    assert sum(read) == 16 * MB


@pytest.mark.gpu
@pytest.mark.skipif(not visible_gpus(), reason="needs a CUDA device")
def test_the_link_of_a_gpu_has_a_rate() -> None:
    assert bench_limits.link_bytes_per_s(0, size_bytes=256 * MB) > 1e9
