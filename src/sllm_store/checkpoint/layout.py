"""Where each extent goes in memory: the image on the host, and the arenas on devices.

The image is the checkpoint as the host pool holds it, and as one device gets it. Every extent
starts at a multiple of ALIGNMENT in it, so a tensor's address suits any kernel and any vector
width. A file whose extents are already aligned keeps its own layout in the image: direct reads
then land in place, and one device copy moves many tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.units import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sllm_store.checkpoint.model import Checkpoint, Extent

ALIGNMENT = 256
PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Bytes of a file that are contiguous in the image too."""

    file: int
    file_offset: int
    size_bytes: int
    image_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The whole checkpoint in contiguous memory. `offsets` has one entry per extent."""

    size_bytes: int
    offsets: tuple[int, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of the image that are contiguous in an arena too."""

    image_offset: int
    size_bytes: int
    arena_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Some extents of a checkpoint in one device's memory. `offsets` is keyed by extent."""

    size_bytes: int
    offsets: dict[int, int]
    pieces: tuple[Piece, ...]


def plan_image(checkpoint: Checkpoint) -> Image:
    """Lay every extent out once, file by file."""
    offsets = [0] * len(checkpoint.extents)
    runs: list[Run] = []
    cursor = 0
    for file, group in _by_file(checkpoint.extents):
        cursor = align_up(cursor, PAGE)
        aligned = all(extent.offset % ALIGNMENT == 0 for _, extent in group)
        base = cursor - align_down(group[0][1].offset, PAGE)
        for index, extent in group:
            if base + extent.offset - cursor >= PAGE:  # A hole in the file is not kept.
                base = align_up(cursor, PAGE) - align_down(extent.offset, PAGE)
            start = base + extent.offset if aligned else align_up(cursor, ALIGNMENT)
            offsets[index] = start
            cursor = max(cursor, start + extent.size_bytes)
            run = Run(
                file=file,
                file_offset=extent.offset,
                size_bytes=extent.size_bytes,
                image_offset=start,
            )
            _append_run(runs, run)
    return Image(size_bytes=align_up(cursor, PAGE), offsets=tuple(offsets), runs=tuple(runs))


def plan_arena(checkpoint: Checkpoint, image: Image, extents: Iterable[int]) -> Arena:
    """Pack some of the image's extents into one arena, keeping neighbours together."""
    wanted = sorted(set(extents), key=lambda index: (image.offsets[index], index))
    offsets: dict[int, int] = {}
    pieces: list[Piece] = []
    cursor = 0
    end_in_image = 0
    for index in wanted:
        start, size = image.offsets[index], checkpoint.extents[index].size_bytes
        if size == 0:  # It takes no room, so it must not move the others either.
            offsets[index] = 0
            continue
        gap = start - end_in_image
        near = bool(pieces) and gap < PAGE
        place = cursor + gap if near else align_up(cursor, ALIGNMENT)
        offsets[index] = place
        if near:
            last = pieces[-1]
            pieces[-1] = Piece(
                image_offset=last.image_offset,
                size_bytes=max(last.size_bytes, start + size - last.image_offset),
                arena_offset=last.arena_offset,
            )
        else:
            pieces.append(Piece(image_offset=start, size_bytes=size, arena_offset=place))
        cursor = max(cursor, place + size)
        end_in_image = max(end_in_image, start + size)
    return Arena(size_bytes=align_up(cursor, ALIGNMENT), offsets=offsets, pieces=tuple(pieces))


def _by_file(extents: Sequence[Extent]) -> list[tuple[int, list[tuple[int, Extent]]]]:
    """Group extents by file, each group in order of offset. Empty extents come along."""
    groups: dict[int, list[tuple[int, Extent]]] = {}
    for index, extent in enumerate(extents):
        groups.setdefault(extent.file, []).append((index, extent))
    return [
        (file, sorted(group, key=lambda entry: (entry[1].offset, entry[1].size_bytes)))
        for file, group in sorted(groups.items())
    ]


def _append_run(runs: list[Run], run: Run) -> None:
    """Add a run, merged with the last one when both sides continue it across a small gap."""
    if run.size_bytes == 0:
        return
    if runs and runs[-1].file == run.file:
        last = runs[-1]
        file_gap = run.file_offset - (last.file_offset + last.size_bytes)
        image_gap = run.image_offset - (last.image_offset + last.size_bytes)
        if file_gap == image_gap and 0 <= file_gap < PAGE:
            runs[-1] = Run(
                file=last.file,
                file_offset=last.file_offset,
                size_bytes=last.size_bytes + file_gap + run.size_bytes,
                image_offset=last.image_offset,
            )
            return
    runs.append(run)
