"""What a save writes: tensors in memory, and the ranges of storage that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.checkpoint.dtype import HALF_FLOATS, ITEM_SIZES
from sllm_store.checkpoint.fields import DIMENSIONS_MAX, INT64_MAX, shown
from sllm_store.checkpoint.layout import PAGE
from sllm_store.errors import InvalidRequestError
from sllm_store.units import align_down

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A tensor to save: a strided view of a storage that others may share.

    `storage` names the storage: equal values are the same memory, for as long as the writer
    lives. `address` and `size_bytes` are the whole storage's; of it, only what views span is read.
    Strides and storage_offset count elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage: Hashable
    address: int
    size_bytes: int

    @property
    def span(self) -> tuple[int, int]:
        """First byte and end of the view in its storage; (0, 0) if it has no elements."""
        if 0 in self.shape:
            return 0, 0
        item = ITEM_SIZES[self.dtype]
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.storage_offset * item, (self.storage_offset + last + 1) * item


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRange:
    """Bytes of one storage that become one extent.

    `dtype` is that of a view of them: of a 16-bit float, if any is.
    """

    storage: Hashable
    start: int
    end: int
    address: int
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the range."""
        return self.end - self.start

    def holds(self, source: Source) -> bool:
        """Return whether a view lies in the range, at a whole number of its elements."""
        start, end = source.span
        inside = self.start <= start and end <= self.end
        return inside and (start - self.start) % ITEM_SIZES[source.dtype] == 0


def check_source(source: Source) -> None:
    """Raise InvalidRequestError for a tensor that cannot be saved, saying why."""
    if source.dtype not in ITEM_SIZES:
        raise InvalidRequestError(f"{shown(source.name)} has unknown dtype {shown(source.dtype)}")
    numbers = (*source.shape, *source.stride, source.storage_offset, source.size_bytes)
    if (
        len(source.shape) != len(source.stride)
        or len(source.shape) > DIMENSIONS_MAX
        or any(not 0 <= number <= INT64_MAX for number in numbers)
    ):
        raise InvalidRequestError(
            f"{shown(source.name)} has shape {source.shape}, stride {source.stride} and storage "
            f"offset {source.storage_offset}, which is no view"
        )
    _, end = source.span
    if end > source.size_bytes or (end and not source.address):
        raise InvalidRequestError(
            f"{shown(source.name)} reaches to byte {end} of a storage of {source.size_bytes} bytes "
            f"at address {source.address:#x}"
        )
    try:
        source.name.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"the name {shown(source.name)} is not text") from None


def plan_ranges(sources: Iterable[Source]) -> list[StorageRange]:
    """Return what to write for checked sources, in the order in which storages first appear.

    The views of a storage stay together, so that sharing survives; a hole of a page or more that
    no view looks at splits them, so that two small views of a huge buffer stay small.
    """
    groups: dict[Hashable, list[Source]] = {}
    for source in sources:
        if 0 not in source.shape:
            groups.setdefault(source.storage, []).append(source)
    ranges: list[StorageRange] = []
    for views in groups.values():
        ranges.extend(_cluster(views) if len(views) > 1 else [_range_of(views, *views[0].span)])
    return ranges


def _cluster(views: list[Source]) -> list[StorageRange]:
    ordered = sorted(views, key=lambda view: view.span)
    ranges: list[StorageRange] = []
    members: list[Source] = []
    start, end = ordered[0].span
    for view in ordered:
        view_start, view_end = view.span
        if view_start - end >= PAGE:
            ranges.append(_range_of(members, start, end))
            members, start = [], view_start
        members.append(view)
        end = max(end, view_end)
    return [*ranges, _range_of(members, start, end)]


def _range_of(members: list[Source], start: int, end: int) -> StorageRange:
    # Views of different widths must all be at a whole number of their elements from the start.
    first = align_down(start, max(ITEM_SIZES[view.dtype] for view in members))
    view = next((view for view in members if view.dtype in HALF_FLOATS), members[0])
    return StorageRange(
        storage=view.storage, start=first, end=end, address=view.address + first, dtype=view.dtype
    )
