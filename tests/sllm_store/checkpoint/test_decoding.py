"""Extents read as they are in memory: whole, or with an error that names file and place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sllm_store import native
from sllm_store.checkpoint.decoding import read_extent
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import InvalidCheckpointError, ReadError
from tests.checkpoint_memory import weights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.checkpoint_memory import Memory

NOISE = np.random.default_rng(0).bytes(1 << 20)
CONTENT = weights(600_000) + NOISE + weights(600_001, seed=1)


@pytest.fixture
def saved(tmp_path: Path, memory: Memory) -> Path:
    with CheckpointWriter(tmp_path / "m", compress=True) as writer:
        writer.write([memory.tensor("a", CONTENT, "float16"), memory.tensor("b", b"b" * 10)])
    return tmp_path / "m"


def read(directory: Path, number: int) -> bytes:
    checkpoint = open_checkpoint(directory)
    extent = checkpoint.extents[number]
    memory = np.full(extent.size_bytes + 1, 0xA5, dtype=np.uint8)
    file = native.File(str(checkpoint.files[extent.file].path))
    read_extent(file, extent, memory.ctypes.data)
    assert memory[-1] == 0xA5
    return memory[:-1].tobytes()


def test_compressed_and_plain_extents_come_back(saved: Path) -> None:
    kinds = [segment.is_coded for segment in open_checkpoint(saved).extents[0].segments]
    assert True in kinds
    assert read(saved, 0) == CONTENT
    assert read(saved, 1) == b"b" * 10


def test_a_corrupt_segment_is_named(saved: Path) -> None:
    data = bytearray((saved / "tensor.data_0").read_bytes())
    data[0] ^= 1
    (saved / "tensor.data_0").write_bytes(data)
    with pytest.raises(
        InvalidCheckpointError, match=r"tensor\.data_0: the segment at offset 0 can"
    ):
        read(saved, 0)


def test_a_file_cut_short_is_named(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    with (saved / "tensor.data_0").open("r+b") as file:
        file.truncate(5000)
    extent = checkpoint.extents[0]
    memory = np.empty(extent.size_bytes, dtype=np.uint8)
    with pytest.raises(ReadError, match=r"tensor\.data_0 failed"):
        read_extent(native.File(str(checkpoint.files[0].path)), extent, memory.ctypes.data)
