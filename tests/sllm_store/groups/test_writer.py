"""Groups are written whole, each from the start of a page on, and are read back as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sllm_store.groups.layout import PAGE
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.stored import open_stored
from sllm_store.groups.writer import GroupTensor, GroupWriter

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = 3


def _write(writer: GroupWriter, number: int) -> np.ndarray:
    memory = np.arange(1024, dtype=np.uint8) + number
    tensors = [
        GroupTensor(name=f"{number}.low", dtype="int32", shape=(8, 16), offset=0),
        GroupTensor(name=f"{number}.scales", dtype="float16", shape=(16,), offset=768),
    ]
    writer.write(tensors, address=memory.ctypes.data, size_bytes=memory.nbytes)
    return memory


def test_a_group_is_one_read_from_the_start_of_a_page(tmp_path: Path) -> None:
    with GroupWriter(tmp_path / "made") as writer:
        written = [_write(writer, number) for number in range(GROUPS)]
    stored = open_stored(tmp_path / "made")
    groups = [
        [tensor for tensor in stored.tensors if tensor.name.startswith(f"{number}.")]
        for number in range(GROUPS)
    ]
    reader = GroupReader(stored, groups)
    for number, layout in enumerate(reader.layouts):
        ((_, offset, size, place),) = layout.reads
        assert (offset % PAGE, size, place) == (0, 800, 0)
        assert layout.places == (0, 768)
        found = np.from_dlpack(reader.load(number))
        assert np.array_equal(found[:512], written[number][:512])
        assert np.array_equal(found[768:800], written[number][768:800])


def _write_half(path: Path) -> None:
    with GroupWriter(path) as writer:
        _write(writer, 0)
        raise KeyboardInterrupt


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
