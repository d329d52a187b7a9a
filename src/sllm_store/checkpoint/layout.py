"""Where each extent goes in memory: the image on the host, and the arenas on devices.

The image is the checkpoint as the host pool holds it. A file keeps its own layout in it, page by
page, so direct reads land in place whatever the length of its header. Tensors on the host are
aligned as their file has them, to their elements at least; on a GPU each starts at a multiple of
ALIGNMENT, which suits any kernel: pieces are moved there, and the fewer the better. So a file of
which some element would not be aligned, or most tensors would be a copy each, is packed instead:
its extents start at multiples of ALIGNMENT already in the image, and its reads take one more copy.

Of a compressed checkpoint the image has the bytes as they are stored; arenas have them decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, compress, count, pairwise
from operator import add, ne, sub
from typing import TYPE_CHECKING, NamedTuple

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.errors import InvalidRequestError
from sllm_store.units import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sllm_store.checkpoint.model import Checkpoint, Extent, Segment

ALIGNMENT = 256
PAGE = 4096
# What a link moves in the time that one more copy costs it, times seven: 48 GB/s in copies of 1 MiB
# where large ones had 55.
_COPY_BYTES_MIN = 1 << 20


class Run(NamedTuple):
    """Bytes of a file that are contiguous in the image too."""

    file: int
    file_offset: int
    size_bytes: int
    image_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The whole checkpoint in contiguous memory. `offsets` has one entry per extent.

    `segments` has those of each segment of a compressed extent.
    """

    size_bytes: int
    offsets: tuple[int, ...]
    runs: tuple[Run, ...]
    segments: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


class Piece(NamedTuple):
    """Bytes of the image that are contiguous in an arena too."""

    image_offset: int
    size_bytes: int
    arena_offset: int


class Decode(NamedTuple):
    """A coded segment of the image, and where in an arena it is decoded to."""

    image_offset: int
    stored_bytes: int
    raw_bytes: int
    arena_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Some extents of a checkpoint in one device's memory. `offsets` is keyed by extent."""

    size_bytes: int
    offsets: dict[int, int]
    pieces: tuple[Piece, ...]
    decodes: tuple[Decode, ...] = ()

    @property
    def moved_bytes(self) -> int:
        """What a load of the arena writes to it."""
        copied = sum(piece.size_bytes for piece in self.pieces)
        return copied + sum(decode.raw_bytes for decode in self.decodes)


def plan_image(checkpoint: Checkpoint, chunk_bytes: int) -> Image:
    """Lay every extent out once, file by file; no coded segment crosses a chunk's end."""
    if checkpoint.is_compressed:
        return _CompressedImage(chunk_bytes).plan(checkpoint)
    extents = checkpoint.extents
    offsets = [0] * len(extents)
    runs: list[Run] = []
    cursor = 0
    misaligned = _misaligned_files(checkpoint)
    for file, group in _by_file(extents):
        places = [extents[index].offset for index in group]
        sizes = [extents[index].size_bytes for index in group]
        keeps = file not in misaligned and _moves_in_few_copies(places, sizes)
        lay_out = _keep_layout if keeps else _pack
        starts, cursor = lay_out(places, sizes, align_up(cursor, PAGE))
        for index, start in zip(group, starts, strict=True):
            offsets[index] = start
        runs += _join(file, places, sizes, starts)
    return Image(size_bytes=align_up(cursor, PAGE), offsets=tuple(offsets), runs=tuple(runs))


def plan_arena(checkpoint: Checkpoint, image: Image, extents: Iterable[int]) -> Arena:
    """Pack some of the image's extents into one arena, keeping neighbours together."""
    if checkpoint.is_compressed:
        return _plan_decoded_arena(checkpoint, image, extents)
    wanted = sorted(sorted(set(extents)), key=image.offsets.__getitem__)
    # An empty extent takes no room, so it must not move the others either.
    offsets = dict.fromkeys(wanted, 0)
    sizes = [checkpoint.extents[index][2] for index in wanted]
    solid = list(compress(wanted, sizes))
    starts = list(map(image.offsets.__getitem__, solid))
    ends = list(map(add, starts, filter(None, sizes)))
    pieces: list[Piece] = []
    cursor = 0
    for first, last in _stretches(starts, ends, aligned=True):
        cursor = align_up(cursor, ALIGNMENT)
        shift = cursor - starts[first]
        pieces.append(Piece(starts[first], ends[last - 1] - starts[first], cursor))
        shifted = [start + shift for start in starts[first:last]]
        offsets.update(zip(solid[first:last], shifted, strict=True))
        cursor = ends[last - 1] + shift
    return Arena(size_bytes=align_up(cursor, ALIGNMENT), offsets=offsets, pieces=tuple(pieces))


class _CompressedImage:
    """Lays out what is stored, moved by whole pages so that direct reads still land in place."""

    def __init__(self, chunk_bytes: int) -> None:
        assert chunk_bytes % PAGE == 0
        self._chunk_bytes = chunk_bytes
        self._runs: list[Run] = []
        self._file = 0
        self._cursor = 0
        self._base = 0  # Of the file's byte 0 in the image, for what comes next.

    def plan(self, checkpoint: Checkpoint) -> Image:
        offsets = [0] * len(checkpoint.extents)
        segments: dict[int, tuple[int, ...]] = {}
        for file, group in _by_file(checkpoint.extents):
            self._file = file
            first = checkpoint.extents[group[0]]
            self._base = align_up(self._cursor, PAGE) - align_down(first.offset, PAGE)
            for index in group:
                extent = checkpoint.extents[index]
                self._skip_hole(extent.offset)
                if extent.segments:
                    segments[index] = self._put_segments(extent.segments)
                    offsets[index] = segments[index][0]
                else:
                    offsets[index] = self._put(extent.offset, extent.size_bytes)
        return Image(
            size_bytes=align_up(self._cursor, PAGE),
            offsets=tuple(offsets),
            runs=tuple(_in_whole_pages(run, checkpoint) for run in self._runs),
            segments=segments,
        )

    def _put_segments(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Place the segments of an extent; a coded one that would cross a chunk's end moves on."""
        chunk_bytes = self._chunk_bytes
        starts: list[int] = []
        first = 0
        for number, (offset, stored_bytes, raw_bytes, _) in enumerate(segments):
            start = self._base + offset
            room = chunk_bytes - start % chunk_bytes
            if stored_bytes > room and stored_bytes < raw_bytes:
                if stored_bytes > chunk_bytes:
                    raise InvalidRequestError(
                        f"a compressed segment of {stored_bytes} bytes does not fit a chunk of "
                        f"{chunk_bytes}: use larger chunks"
                    )
                self._put_neighbours(segments[first:number])
                first = number
                self._base += room
                start += room
            starts.append(start)
        self._put_neighbours(segments[first:])
        return tuple(starts)

    def _put_neighbours(self, segments: Sequence[Segment]) -> None:
        """Place segments that lie in the image as in the file, with less than a page between."""
        if segments:
            start, last = segments[0].offset, segments[-1]
            self._put(start, last.offset + last.stored_bytes - start)

    def _skip_hole(self, offset: int) -> None:
        """Do not keep a hole in the file before an extent at `offset`."""
        if self._base + offset - self._cursor >= PAGE:
            self._base = align_up(self._cursor, PAGE) - align_down(offset, PAGE)

    def _put(self, offset: int, size_bytes: int) -> int:
        start = self._base + offset
        self._cursor = max(self._cursor, start + size_bytes)
        if size_bytes:
            self._append(Run(self._file, offset, size_bytes, start))
        return start

    def _append(self, run: Run) -> None:
        """Add a run, joined with the last one where both sides continue it across a small gap."""
        if self._runs and self._runs[-1].file == run.file:
            last = self._runs[-1]
            file_gap = run.file_offset - (last.file_offset + last.size_bytes)
            image_gap = run.image_offset - (last.image_offset + last.size_bytes)
            if file_gap == image_gap and 0 <= file_gap < PAGE:
                size_bytes = last.size_bytes + file_gap + run.size_bytes
                self._runs[-1] = last._replace(size_bytes=size_bytes)
                return
        self._runs.append(run)


def _in_whole_pages(run: Run, checkpoint: Checkpoint) -> Run:
    """Return a run that ends with its last page: a direct read of the page's rest costs another.

    Nothing else is in that page, in the file or in the image; what it brings, nobody looks at.
    """
    end = align_up(run.file_offset + run.size_bytes, PAGE)
    whole = min(end, checkpoint.files[run.file].size_bytes) - run.file_offset
    return run._replace(size_bytes=max(whole, run.size_bytes))


def _plan_decoded_arena(checkpoint: Checkpoint, image: Image, extents: Iterable[int]) -> Arena:
    """Pack extents one after another, as they are after decoding."""
    offsets: dict[int, int] = {}
    pieces: list[Piece] = []
    decodes: list[Decode] = []
    cursor = 0

    def copy(start: int, size_bytes: int, place: int) -> None:
        # Between two pieces that are joined there must be nothing but padding.
        joins = pieces and not (decodes and decodes[-1].arena_offset > pieces[-1].arena_offset)
        _append_piece(pieces, start, size_bytes, place, joins=bool(joins))

    for index in sorted(set(extents)):
        extent = checkpoint.extents[index]
        if extent.size_bytes == 0:
            offsets[index] = 0
            continue
        place = offsets[index] = align_up(cursor, ALIGNMENT)
        cursor = place + extent.size_bytes
        if not extent.segments:
            copy(image.offsets[index], extent.size_bytes, place)
        for segment, start in zip(extent.segments, image.segments.get(index, ()), strict=True):
            if segment.is_coded:
                decodes.append(Decode(start, segment.stored_bytes, segment.raw_bytes, place))
            else:
                copy(start, segment.raw_bytes, place)
            place += segment.raw_bytes
    return Arena(
        size_bytes=align_up(cursor, ALIGNMENT),
        offsets=offsets,
        pieces=tuple(pieces),
        decodes=tuple(decodes),
    )


def _append_piece(
    pieces: list[Piece], start: int, size_bytes: int, place: int, *, joins: bool
) -> None:
    """Add a piece, joined with the last one where both sides continue it across a small gap."""
    if joins:
        last = pieces[-1]
        gap = start - (last.image_offset + last.size_bytes)
        if gap == place - (last.arena_offset + last.size_bytes) and 0 <= gap < PAGE:
            start, place = last.image_offset, last.arena_offset
            size_bytes += last.size_bytes + gap
            pieces.pop()
    pieces.append(Piece(image_offset=start, size_bytes=size_bytes, arena_offset=place))


def _by_file(extents: Sequence[Extent]) -> list[tuple[int, list[int]]]:
    """Group the numbers of extents by file, each group in order of offset, with the empty ones."""
    places = [extent[:3] for extent in extents]
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(places)), key=places.__getitem__):
        groups.setdefault(places[index][0], []).append(index)
    return list(groups.items())


def _misaligned_files(checkpoint: Checkpoint) -> set[int]:
    """Return the files that have a tensor whose elements are not aligned to their size."""
    extents = checkpoint.extents
    return {
        extents[tensor.extent].file
        for tensors in (checkpoint.tensors, checkpoint.buffers)
        for tensor in tensors.values()
        if extents[tensor.extent].offset % ITEM_SIZES.get(tensor.dtype, 1)
    }


def _moves_in_few_copies(places: list[int], sizes: list[int]) -> bool:
    """Whether extents of a file, moved so that each is aligned, stay together in large pieces."""
    rests = [place % ALIGNMENT for place, size in zip(places, sizes, strict=True) if size]
    moved_apart: int = sum(map(ne, rests, rests[1:]))
    return moved_apart * _COPY_BYTES_MIN <= sum(sizes)


# Both return where each extent of a file starts in the image, and where the last one ends. `places`
# are their offsets in the file, ascending; the image is free from `cursor` on.


def _pack(places: list[int], sizes: list[int], cursor: int) -> tuple[list[int], int]:
    assert len(places) == len(sizes)
    room = [size + -size % ALIGNMENT for size in sizes]
    starts = list(accumulate(room[:-1], initial=align_up(cursor, ALIGNMENT)))
    return starts, starts[-1] + sizes[-1]


def _keep_layout(places: list[int], sizes: list[int], cursor: int) -> tuple[list[int], int]:
    starts: list[int] = []
    ends = list(accumulate(map(add, places, sizes), max))
    for first, last in _stretches(places, ends):  # A hole in the file is not kept.
        shift = align_up(cursor, PAGE) - align_down(places[first], PAGE)
        starts += [place + shift for place in places[first:last]]
        cursor = ends[last - 1] + shift
    return starts, cursor


def _join(file: int, places: list[int], sizes: list[int], starts: list[int]) -> list[Run]:
    """Return a file's ranges and where they go, joined where both continue across a small gap."""
    runs: list[Run] = []
    run_place = run_start = end = 0
    for place, size, start in zip(places, sizes, starts, strict=True):
        if not size:
            continue
        if not end or start - run_start != place - run_place or place - end >= PAGE:
            if end:
                runs.append(Run(file, run_place, end - run_place, run_start))
            run_place, run_start = place, start
        end = place + size
    if end:
        runs.append(Run(file, run_place, end - run_place, run_start))
    return runs


def _stretches(
    starts: list[int], ends: list[int], *, aligned: bool = False
) -> Iterable[tuple[int, int]]:
    """Cut ascending ranges where a page or more lies between two: (first, one behind the last).

    Cut also where two would not both be aligned, if they shall be.
    """
    if not starts:
        return ()
    gaps = map(sub, starts[1:], ends)
    cuts = {index for index, gap in enumerate(gaps, 1) if gap >= PAGE}
    if aligned:
        rests = [start % ALIGNMENT for start in starts]
        cuts.update(compress(count(1), map(ne, rests, rests[1:])))
    return pairwise([0, *sorted(cuts), len(starts)])
