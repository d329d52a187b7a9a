"""Collect the extents of a checkpoint: equal ranges once, inside their files, never overlapping."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.model import Extent
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sllm_store.checkpoint.model import DataFile


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
    ranges: Mapping[str, tuple[int, int, int]], *, source: str
) -> tuple[tuple[Extent, ...], dict[tuple[int, int, int], int]]:
    """Return extents, and the index of each (file, offset, size), from every tensor's range.

    Equal ranges are one extent. Raises InvalidCheckpointError naming two tensors that overlap.
    """
    owners: dict[tuple[int, int, int], str] = {}
    for name, place in ranges.items():
        owners.setdefault(place, name)
    ordered = sorted(owners)
    previous: tuple[int, int, int] | None = None
    for place in ordered:
        file, offset, size = place
        if not size:
            continue
        if previous and previous[0] == file and previous[1] + previous[2] > offset:
            raise InvalidCheckpointError(
                f"{source}: tensors {shown(owners[previous])} and {shown(owners[place])} overlap: "
                f"offset {previous[1]} + {previous[2]} bytes reaches beyond offset {offset}"
            )
        previous = place
    extents = tuple(Extent(file=file, offset=at, size_bytes=size) for file, at, size in ordered)
    return extents, {place: index for index, place in enumerate(ordered)}
