"""Lay a group of tensors out in one buffer, so that direct reads land in place.

Tensors that are neighbours in their file are read together and stay neighbours; each run begins
at the same offset within a page as in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.groups.stored import StoredTensor

PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """Where each of `tensors` is in the buffer, and what to read there.

    reads: (file, file offset, size, offset in the buffer).
    """

    tensors: tuple[StoredTensor, ...]
    places: tuple[int, ...]
    reads: tuple[tuple[int, int, int, int], ...]
    size_bytes: int


def lay_out(tensors: Sequence[StoredTensor]) -> GroupLayout:
    """Return the layout of a group; `tensors` keep their order in it."""
    places = [0] * len(tensors)
    reads: list[tuple[int, int, int, int]] = []
    cursor = 0
    filled = [index for index in range(len(tensors)) if tensors[index].size_bytes]
    for index in sorted(filled, key=lambda index: (tensors[index].file, tensors[index].offset)):
        tensor = tensors[index]
        place = _continue_run(reads, tensor)
        if place is None:
            page = align_up(cursor, PAGE)
            in_page = tensor.offset % PAGE
            place = page + (in_page if in_page % tensor.item_bytes == 0 else 0)
            reads.append((tensor.file, tensor.offset, tensor.size_bytes, place))
        places[index] = place
        cursor = max(cursor, place + tensor.size_bytes)
    return GroupLayout(
        tensors=tuple(tensors),
        places=tuple(places),
        reads=tuple(reads),
        size_bytes=align_up(cursor, PAGE),
    )


def _continue_run(reads: list[tuple[int, int, int, int]], tensor: StoredTensor) -> int | None:
    """Return the tensor's place in the last run, made longer for it, or None if it is elsewhere."""
    if not reads:
        return None
    file, start, size_bytes, run_place = reads[-1]
    place = run_place + tensor.offset - start
    near = file == tensor.file and tensor.offset - (start + size_bytes) < PAGE
    if not near or place % tensor.item_bytes:
        return None
    end = max(start + size_bytes, tensor.offset + tensor.size_bytes)
    reads[-1] = (file, start, end - start, run_place)
    return place
