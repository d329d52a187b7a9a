"""The page cache as a benchmark wants it: without a checkpoint, with all of it, or with half."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store import native

if TYPE_CHECKING:
    from pathlib import Path

_WINDOW_BYTES = 16 << 20
_FOLIO_BYTES = 2 << 20
_PAGE_BYTES = 4 << 10
_TRIES = 5


def data_files(directory: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors; it may be one file itself."""
    if directory.is_file():
        return [directory]
    named = {".safetensors", ".gguf"}
    return [
        path
        for path in sorted(directory.iterdir())
        if path.suffix in named or path.name.startswith("tensor.data_")
    ]


def evict(directory: Path) -> None:
    """Drop a checkpoint from the page cache."""
    os.sync()
    for path in data_files(directory):
        native.File(str(path)).evict()


def fill(directory: Path) -> None:
    """Have all of a checkpoint in the page cache."""
    for path in data_files(directory):
        file = native.File(str(path))
        _fill(file, 0, file.size)


def halve(directory: Path) -> None:
    """Have the first half of every file in the page cache, and nothing of the second."""
    for path in data_files(directory):
        file = native.File(str(path))
        granule = _FOLIO_BYTES if file.size > 8 * _FOLIO_BYTES else _PAGE_BYTES
        middle = file.size // 2 // granule * granule
        _fill(file, 0, middle)
        _drop(path, middle, file.size - middle)


def resident_part(directory: Path) -> float:
    """Return which part of a checkpoint the page cache holds."""
    files = [native.File(str(path)) for path in data_files(directory)]
    total = sum(file.size for file in files)
    return sum(file.resident_bytes(0, file.size) for file in files) / total if total else 0.0


def _fill(file: native.File, start: int, size: int) -> None:
    if not size or file.resident_bytes(start, size) >= size:
        return
    buffer = native.HostBuffer(_WINDOW_BYTES)
    for offset in range(start, start + size, _WINDOW_BYTES):
        file.read_into(offset, buffer.address, min(_WINDOW_BYTES, start + size - offset))


def _drop(path: Path, start: int, size: int) -> None:
    """Drop a range; asked several times, because pages may be busy for a moment."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        for _ in range(_TRIES):
            os.posix_fadvise(opened.fileno(), start, size, os.POSIX_FADV_DONTNEED)
