"""Loads without a store: every reader mode, progress, deadlines, errors."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import (
    CheckpointNotFoundError,
    ChecksumError,
    DeadlineError,
    DeviceError,
    InvalidCheckpointError,
    InvalidRequestError,
    ReadError,
)
from sllm_store.stream import load_checkpoint
from tests.store_process import (
    random_tensors,
    read_tensors,
    weight_tensors,
    write_checkpoint,
    write_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.loaded import Placed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_upstream(tmp_path / "m", random_tensors(7, 11_000_003))
    return tmp_path / "m"


@pytest.mark.parametrize("mode", ["auto", "buffered", "direct", "io_uring", "cufile"])
def test_every_mode_gives_the_same_bytes(model: Path, mode: str) -> None:
    loaded = load_checkpoint(model, {}, mode=mode, threads=3)
    assert read_tensors(loaded) == random_tensors(7, 11_000_003)
    assert loaded.store == "in-process"


def test_tensors_on_the_host_start_where_their_file_s_pages_have_them(model: Path) -> None:
    extents = open_checkpoint(model).extents
    for tensor, extent in zip(load_checkpoint(model, {}).tensors, extents, strict=True):
        assert tensor.offset_bytes % 4096 == extent.offset % 4096


def test_progress_ends_at_the_total(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_checkpoint(model, {}, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]


def test_no_garbage_is_collected_until_the_bytes_move(model: Path) -> None:
    collections: list[str] = []
    seen: list[int] = []

    def note(phase: str, _: dict[str, int]) -> None:
        collections.append(phase)

    def place(_: Placed) -> None:
        seen.append(len(collections))
        raise KeyError

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(50)
    try:
        with pytest.raises(KeyError):
            load_checkpoint(model, {}, on_placed=place)
        began = len(collections)
        with pytest.raises(InvalidRequestError):
            load_checkpoint(model, {"a": "cpu"})
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)
    assert seen[0] <= 2  # One at most, while the load was called.
    assert len(collections) > began > 2
    assert gc.isenabled()


def test_a_deadline_ends_a_load(model: Path) -> None:
    with pytest.raises(DeadlineError, match=r"within 0\.0 s"):
        load_checkpoint(model, {}, timeout_s=0.0)


def test_a_callback_that_raises_ends_the_load(model: Path) -> None:
    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(model, {}, on_progress=refuse)


def test_an_unknown_gpu_is_named(model: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU abc is visible here"):
        load_checkpoint(model, {"": "abc"})


def test_a_map_that_forgets_a_tensor_is_refused(model: Path) -> None:
    with pytest.raises(InvalidRequestError, match="places no tensor"):
        load_checkpoint(model, {"other": "cpu"})


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="none"):
        load_checkpoint(tmp_path / "none", {})


def test_a_file_cut_short_is_an_error(model: Path) -> None:
    with (model / "tensor.data_0").open("r+b") as file:
        file.truncate(20_000_000)
    with pytest.raises((ReadError, InvalidCheckpointError), match=r"tensor\.data_0|layers"):
        load_checkpoint(model, {})


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "c", weight_tensors(9, 5_000_000), compress=True)
    assert open_checkpoint(tmp_path / "c").is_compressed
    return tmp_path / "c"


@pytest.mark.parametrize("mode", ["auto", "buffered", "direct", "io_uring"])
def test_a_compressed_checkpoint_is_decoded_in_every_mode(compressed: Path, mode: str) -> None:
    loaded = load_checkpoint(compressed, {}, mode=mode, threads=3)
    assert read_tensors(loaded) == weight_tensors(9, 5_000_000)
    assert isinstance(loaded.arenas[0], native.HostBuffer)
    assert all(tensor.offset_bytes % 256 == 0 for tensor in loaded.tensors)


def test_progress_counts_bytes_after_decoding(compressed: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_checkpoint(compressed, {}, on_progress=lambda done, total: seen.append((done, total)))
    raw_bytes = sum(map(len, weight_tensors(9, 5_000_000).values()))
    assert seen[-1][0] == seen[-1][1]
    assert raw_bytes <= seen[-1][1] < raw_bytes + 4096
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_corrupt_segment_is_an_error(compressed: Path) -> None:
    segment = open_checkpoint(compressed).extents[4].segments[2]
    with (compressed / "tensor.data_0").open("r+b") as file:
        file.seek(segment.offset)
        file.write(b"????")
    with pytest.raises(ChecksumError, match=r"corrupt.*verify the checkpoint"):
        load_checkpoint(compressed, {})


def test_a_compressed_checkpoint_of_nothing_but_empty_tensors_is_an_ordinary_one(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "e", {"a": b"", "b": b""}, compress=True)
    loaded = load_checkpoint(tmp_path / "e", {})
    assert [tensor.shape for tensor in loaded.tensors] == [(0,), (0,)]
