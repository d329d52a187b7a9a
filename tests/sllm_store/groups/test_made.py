"""Tensors that are made are in a file of memory, once they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sllm_store import native
from sllm_store.convert.gguf_delta import Change
from sllm_store.convert.gguf_tensors import Conversion, Part
from sllm_store.errors import ReadError
from sllm_store.groups.made import MadeFile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, COLUMNS, Q8_0_BYTES = 4, 64, 34


def _read(made: MadeFile, place: int) -> NDArray[np.uint8]:
    tensor = made.tensors[place]
    found = np.empty(tensor.conversion.rearranged_bytes, dtype=np.uint8)
    made.file.read_into(tensor.offset, found.ctypes.data, found.nbytes)
    return found


def _conversion(dtype: str, size_bytes: int, change: Change) -> Conversion:
    part = Part(file=0, offset=0, size_bytes=size_bytes, dtype=dtype, shape=(ROWS, COLUMNS))
    return Conversion(
        name="w", parts=(part,), target="float32", shape=(ROWS, COLUMNS), change=change
    )


def test_rows_change_places_as_blocks_and_numbers_are_computed(tmp_path: Path) -> None:
    content = np.random.default_rng(0).standard_normal(ROWS * COLUMNS).astype(np.float32)
    (tmp_path / "data").write_bytes(content.tobytes())
    files = [native.File(str(tmp_path / "data"))]
    blocks = ROWS * COLUMNS // 32 * Q8_0_BYTES
    turned = Change(arrange=lambda parts: parts[0][::-1])
    doubled = Change(compute=lambda values: values * 2)
    made = MadeFile(
        [
            _conversion("gguf:Q8_0", blocks, turned),
            _conversion("float32", content.nbytes, doubled),
        ],
        files,
    )
    assert made.tensors[0].conversion.rearranged == "gguf:Q8_0"
    assert not _read(made, 1).any()
    for _ in range(2):
        made.fill()
    rows = content.view(np.uint8)[:blocks].reshape(ROWS, -1)
    assert np.array_equal(_read(made, 0).reshape(ROWS, -1), rows[::-1])
    assert np.array_equal(_read(made, 1).view(np.float32), content * 2)


def test_blocks_whose_columns_change_places_become_numbers(tmp_path: Path) -> None:
    change = Change(arrange=lambda parts: parts[0][:, ::-1], axis=1)
    conversion = _conversion("gguf:Q8_0", ROWS * COLUMNS // 32 * Q8_0_BYTES, change)
    assert conversion.rearranged == "bfloat16"
    assert conversion.rearranged_bytes == 2 * ROWS * COLUMNS
    (tmp_path / "data").write_bytes(bytes(10))
    made = MadeFile([conversion], [native.File(str(tmp_path / "data"))])
    with pytest.raises(ReadError, match="data"):
        made.fill()
