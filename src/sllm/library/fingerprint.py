"""A checkpoint's identity without reading all of it: sizes, and the ends of each file.

A header names every tensor, and the last bytes are weights: fine-tunes of one model differ there.
What is computed with the weights, and which text they are about, small files say beside them.
Hashing 40 GB where it lies would take a minute per pull and tell little more.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from sllm_store.convert.small_files import TEXT_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_END_BYTES = 1 << 20


def small_files(path: Path) -> list[Path]:
    """Return the files beside a directory's weights that change its answers; a file has none."""
    return [file for name in TEXT_FILES if (file := path / name).is_file()]


def fingerprint(files: Sequence[Path]) -> str:
    """Return 'ends-' and 64 digits, equal for files of equal sizes, beginnings and ends."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name}\0{size_bytes}\0".encode())
            digest.update(file.read(_END_BYTES))
            file.seek(max(size_bytes - _END_BYTES, 0))
            digest.update(file.read(_END_BYTES))
    return f"ends-{digest.hexdigest()}"
