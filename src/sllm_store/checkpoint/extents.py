"""Collect the extents of a checkpoint: equal ranges once, inside their files, never overlapping."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from sllm_store.checkpoint.fields import shown
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.checkpoint.model import DataFile, Extent


class Partitions:
    """Translates offsets into the concatenation of files to files and offsets in them."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._files = files
        self._ends = list(accumulate(file.size_bytes for file in files))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return self._ends[-1] if self._ends else 0

    def locate(self, offset: int, size: int) -> tuple[int, int]:
        """Return (file, offset in it); ValueError if the range is not inside one file."""
        if offset + size > self.total_bytes:
            raise ValueError(
                f"bytes {offset} to {offset + size} are past the end: "
                f"the data has {self.total_bytes} bytes, so it is truncated or the offset is wrong"
            )
        # An empty range may sit at the very end, behind the last file's last byte.
        file = min(bisect_right(self._ends, offset), len(self._ends) - 1)
        start = self._ends[file] - self._files[file].size_bytes
        if offset + size > self._ends[file]:
            raise ValueError(
                f"bytes {offset} to {offset + size} cross the end of "
                f"{self._files[file].path.name} at {self._ends[file]}; a tensor never does"
            )
        return file, offset - start


def unique_extents(
    names: Sequence[str], extents: Sequence[Extent], *, source: str
) -> tuple[tuple[Extent, ...], Sequence[int]]:
    """Return a checkpoint's extents, and which of them each tensor has, from every tensor's own.

    Equal ranges are one extent. Raises InvalidCheckpointError naming two tensors that overlap.
    """
    ordered = sorted(dict.fromkeys(extents))
    solid = [extent for extent in ordered if extent.size_bytes]
    for before, extent in pairwise(solid):
        if before.file == extent.file and before.offset + before.size_bytes > extent.offset:
            first, second = (names[extents.index(each)] for each in (before, extent))
            raise InvalidCheckpointError(
                f"{source}: tensors {shown(first)} and {shown(second)} overlap: offset "
                f"{before.offset} + {before.size_bytes} bytes reaches beyond offset {extent.offset}"
            )
    if ordered == extents:
        return tuple(ordered), range(len(ordered))
    numbers = {extent: number for number, extent in enumerate(ordered)}
    return tuple(ordered), [numbers[extent] for extent in extents]
