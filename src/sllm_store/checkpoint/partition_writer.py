"""Lay extents into partition files, tensor.data_0 and on, and write them with native code.

One copy of the bytes through the processor's cache (summed there), then direct I/O in the
background: a save takes as long as the disk needs for its bytes. What a save teaches about the disk
is remembered for the next one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.layout import ALIGNMENT, PAGE
from sllm_store.checkpoint.manifest import StoredExtent, partition_name
from sllm_store.disks import disk_memory, disk_of
from sllm_store.units import align_up

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.source import StorageRange


class PartitionFiles:
    """The partitions of a save: one is open, those before it are finished and have a size."""

    def __init__(self, directory: Path, *, threads: int, direct: bool) -> None:
        self._directory = directory
        self._threads = threads
        self._direct = direct
        self._disk = disk_of(directory)
        self._memory = disk_memory(os.environ)
        self._file: native.FileWriter | None = None
        self.sizes: list[int] = []

    def write(self, pieces: list[tuple[int, int, int]], control: native.Control) -> list[int]:
        """Write (offset, address, size) to the open partition; return each one's CRC-32C."""
        return self._open().write(pieces, control)

    def close(self, end: int) -> None:
        """Finish the open partition, whose last extent ends at `end`, and sync it."""
        # Whole pages: global offsets of the next partition stay aligned, and a direct read may
        # take the last block of the file.
        size = align_up(end, PAGE)
        self._open().finish(size)
        self._file = None
        self._memory.keep(self._disk, "writes")
        self.sizes.append(size)

    def abort(self) -> None:
        """Close without more writing; the files stay for their owner to remove."""
        if self._file is not None:
            self._file.abort()
            self._file = None

    def _open(self) -> native.FileWriter:
        if self._file is None:
            path = self._directory / partition_name(len(self.sizes))
            self._file = native.FileWriter(
                str(path),
                threads=self._threads,
                direct=self._direct,
                tuner=self._memory.tuner(self._disk, "writes"),
            )
        return self._file


class PartitionWriter:
    """Appends extents; each starts aligned, and a partition ends before it would be too long.

    `extents` are those that are written; `sizes` are those of finished partitions.
    """

    def __init__(
        self,
        files: PartitionFiles,
        *,
        max_shard_bytes: int,
        control: native.Control,
        alignment: int = ALIGNMENT,
    ) -> None:
        self._files = files
        self._alignment = alignment
        self._max_shard_bytes = max_shard_bytes
        self._control = control
        self._base = 0
        self._end = 0
        self._pending: list[tuple[int, int, int]] = []
        self.extents: list[StoredExtent] = []

    def append(self, part: StorageRange) -> int:
        """Place an extent and return its global offset. Its memory must live until flush()."""
        size = part.size_bytes
        assert size > 0, "an empty tensor has no extent"
        start = align_up(self._end, self._alignment)
        if self._end and start + size > self._max_shard_bytes:
            self._close()
            start = 0
        self._pending.append((start, part.address, size))
        self._end = start + size
        return self._base + start

    def flush(self) -> None:
        """Hand the placed extents to the file; their memory may be reused afterwards."""
        if not self._pending:
            return
        checksums = self._files.write(self._pending, self._control)
        self.extents.extend(
            StoredExtent(self._base + start, size, checksum, self._base + start)
            for (start, _, size), checksum in zip(self._pending, checksums, strict=True)
        )
        self._pending.clear()

    def finish(self) -> None:
        """Write and sync everything. There is always at least one partition."""
        if self._end or not self._files.sizes:
            self._close()

    def abort(self) -> None:
        """Close without more writing."""
        self._files.abort()

    def _close(self) -> None:
        self.flush()
        self._files.close(self._end)
        self._base += self._files.sizes[-1]
        self._end = 0
