"""Lay extents into partition files, tensor.data_0 and on, and write them with native code.

One copy of the bytes through the processor's cache (summed there), then direct I/O: a save takes
as long as the disk needs for its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.layout import ALIGNMENT, PAGE
from sllm_store.checkpoint.manifest import partition_name
from sllm_store.units import align_up

if TYPE_CHECKING:
    from pathlib import Path


class PartitionWriter:
    """Appends extents; each starts aligned, and a partition ends before it would be too long.

    `extents` are (global offset, size, CRC-32C) of what is written; `sizes` are those of finished
    partitions.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_shard_bytes: int,
        threads: int,
        direct: bool,
        control: native.Control,
    ) -> None:
        self._directory = directory
        self._max_shard_bytes = max_shard_bytes
        self._threads = threads
        self._direct = direct
        self._control = control
        self._file: native.FileWriter | None = None
        self._base = 0
        self._end = 0
        self._pending: list[tuple[int, int, int]] = []
        self.extents: list[tuple[int, int, int]] = []
        self.sizes: list[int] = []

    def append(self, address: int, size: int) -> int:
        """Place an extent and return its global offset. Its memory must live until flush()."""
        assert size > 0, "an empty tensor has no extent"
        start = align_up(self._end, ALIGNMENT)
        if self._end and start + size > self._max_shard_bytes:
            self._close()
            start = 0
        self._pending.append((start, address, size))
        self._end = start + size
        return self._base + start

    def flush(self) -> None:
        """Hand the placed extents to the file; their memory may be reused afterwards."""
        file = self._open()
        if not self._pending:
            return
        checksums = file.write(self._pending, self._control)
        self.extents.extend(
            (self._base + start, size, checksum)
            for (start, _, size), checksum in zip(self._pending, checksums, strict=True)
        )
        self._pending.clear()

    def finish(self) -> None:
        """Write and sync everything. There is always at least one partition."""
        if self._end or not self.sizes:
            self._close()

    def abort(self) -> None:
        """Close without more writing; the files stay for their owner to remove."""
        if self._file is not None:
            self._file.abort()
            self._file = None

    def _open(self) -> native.FileWriter:
        if self._file is None:
            path = self._directory / partition_name(len(self.sizes))
            self._file = native.FileWriter(str(path), threads=self._threads, direct=self._direct)
        return self._file

    def _close(self) -> None:
        self.flush()
        # Whole pages: global offsets of the next partition stay aligned, and a direct read may
        # take the last block of the file.
        size = align_up(self._end, PAGE)
        self._open().finish(size)
        self._file = None
        self.sizes.append(size)
        self._base += size
        self._end = 0
