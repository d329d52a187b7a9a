"""Code the 16-bit floats of a save while what was coded before is being written.

The caller's thread codes batches of segments with all processors, another one writes them: a save
takes as long as the slower of the two. A batch is in a slab of the writer's own, so it may be
written after its tensors are gone.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.dtype import HALF_FLOATS
from sllm_store.checkpoint.layout import ALIGNMENT, PAGE
from sllm_store.checkpoint.manifest import SEGMENT_ALIGNMENT, SEGMENT_BYTES, StoredExtent
from sllm_store.units import align_up, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sllm_store.checkpoint.partition_writer import PartitionFiles
    from sllm_store.checkpoint.source import StorageRange

CODED_BYTES_MIN = 64 << 10  # A shorter extent is not worth a header and a page.
BATCH_BYTES = 64 << 20
COPIED_BYTES_MAX = 1 << 20  # Pieces up to this size go through a slab: nobody waits for them.
_IN_FLIGHT = 2
_THREADS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What compressing a checkpoint came to. `kept` are bytes stored as they are, by dtype."""

    raw_bytes: int
    stored_bytes: int
    kept: Mapping[str, int]

    @property
    def summary(self) -> str:
        """Return one clause for a person."""
        kept = ", ".join(f"{format_size(size)} of {dtype}" for dtype, size in self.kept.items())
        if self.stored_bytes == self.raw_bytes:
            return f"not compressed: coding gains nothing on {kept or 'empty tensors'}"
        ratio = f"compressed to {self.stored_bytes / self.raw_bytes:.1%}"
        return f"{ratio}; stored as they are: {kept}" if kept else ratio


@dataclass(slots=True)
class _Extent:
    """An extent on its way. Checksums of stored pieces come when they are written."""

    offset: int
    part: StorageRange
    is_cut: bool
    checksum: Future[int] | None = None
    start: int = -1
    sizes: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)

    def finished(self) -> StoredExtent:
        size = self.part.size_bytes
        if self.checksum is None:
            return StoredExtent(self.offset, size, self.checksums[0], self.start)
        crc = self.checksum.result()
        extent = StoredExtent(
            self.offset, size, crc, self.start, tuple(self.sizes), tuple(self.checksums)
        )
        return extent if extent.is_coded else StoredExtent(self.offset, size, crc, self.start)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes to write: a segment, or a whole extent. Borrowed ones are the caller's."""

    extent: _Extent
    address: int
    size: int

    @property
    def is_borrowed(self) -> bool:
        """Whether the piece is written from where the caller has it."""
        return not self.extent.is_cut and self.size > COPIED_BYTES_MAX


class CompressedWriter:
    """Appends extents, those of 16-bit floats in segments that are coded where that pays.

    Takes the place of a PartitionWriter; offsets that it gives count bytes before coding.
    """

    def __init__(
        self,
        files: PartitionFiles,
        *,
        max_shard_bytes: int,
        threads: int | None,
        control: native.Control,
    ) -> None:
        """Code with so many threads, with all processors unless told."""
        self._files = files
        self._max_shard_bytes = max_shard_bytes
        self._threads = min(threads or os.cpu_count() or 1, _THREADS_MAX)
        self._control = control
        # Coding has counted the bytes of what it was given already, before they became fewer.
        self._uncounted = native.Control()
        self._base = 0
        self._end = 0
        self._raw_end = 0
        self._pending: list[_Extent] = []
        self._extents: list[_Extent] = []
        self._writing: deque[tuple[Future[None], bool]] = deque()
        # One is filled while those of the writes in flight are read.
        self._slabs = [
            native.HostBuffer(BATCH_BYTES + SEGMENT_BYTES) for _ in range(_IN_FLIGHT + 1)
        ]
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sllm-write")
        self._sums = ThreadPoolExecutor(1, thread_name_prefix="sllm-sum")

    @property
    def extents(self) -> list[StoredExtent]:
        """The extents, once finish() has returned."""
        return [extent.finished() for extent in self._extents]

    @property
    def compression(self) -> Compression:
        """What coding gained, once finish() has returned."""
        kept: Counter[str] = Counter()
        stored_bytes = raw_bytes = 0
        for extent in self._extents:
            raw_bytes += extent.part.size_bytes
            stored_bytes += sum(extent.sizes)
            as_they_are = _kept_bytes(extent)
            if as_they_are:
                kept[extent.part.dtype] += as_they_are
        return Compression(raw_bytes=raw_bytes, stored_bytes=stored_bytes, kept=dict(kept))

    def append(self, part: StorageRange) -> int:
        """Take an extent and return its offset. Its memory must live until flush()."""
        assert part.size_bytes > 0, "an empty tensor has no extent"
        offset = align_up(self._raw_end, ALIGNMENT)
        self._raw_end = offset + part.size_bytes
        is_cut = part.dtype in HALF_FLOATS and part.size_bytes >= CODED_BYTES_MIN
        self._pending.append(_Extent(offset, part, is_cut))
        return offset

    def flush(self) -> None:
        """Code what was appended and see to it that it is written without its memory."""
        for extent in self._pending:
            if extent.is_cut:
                part = extent.part
                extent.checksum = self._sums.submit(native.crc32c, part.address, part.size_bytes)
        for batch in _batches(self._pending):
            self._write(self._encode(batch))
        while any(borrowed for _, borrowed in self._writing):
            self._settle()
        for extent in self._pending:
            if extent.checksum is not None:
                extent.checksum.result()
        self._extents.extend(self._pending)
        self._pending.clear()

    def finish(self) -> None:
        """Write and sync everything. There is always at least one partition."""
        self.flush()
        if self._end or not self._base:
            self._close()
        while self._writing:
            self._settle()

    def abort(self) -> None:
        """Close without more writing."""
        self._disk.shutdown(cancel_futures=True)
        self._sums.shutdown(cancel_futures=True)
        self._files.abort()

    def _encode(self, batch: list[_Piece]) -> list[_Piece]:
        """Return what to write for each piece: what became of it in the slab, or itself."""
        self._slabs.append(self._slabs.pop(0))
        places: list[int] = []
        place = self._slabs[-1].address
        for piece in batch:
            places.append(place)
            place += 0 if piece.is_borrowed else align_up(piece.size, ALIGNMENT)
        segments = [
            (piece.address, piece.size, place)
            for piece, place in zip(batch, places, strict=True)
            if piece.extent.is_cut
        ]
        sizes = iter(
            native.encode_segments_into(segments, threads=self._threads, control=self._control)
        )
        pieces: list[_Piece] = []
        for piece, place in zip(batch, places, strict=True):
            size = next(sizes) if piece.extent.is_cut else 0
            if piece.is_borrowed:
                pieces.append(piece)
                continue
            if not size:
                size = piece.size
                ctypes.memmove(place, piece.address, size)
            pieces.append(_Piece(piece.extent, place, size))
        return pieces

    def _write(self, pieces: list[_Piece]) -> None:
        """Place pieces and let the other thread write them, partition by partition."""
        placed: list[tuple[int, _Piece]] = []
        for piece in pieces:
            start = align_up(self._end, SEGMENT_ALIGNMENT if piece.extent.is_cut else ALIGNMENT)
            if piece.extent.start < 0:
                # No segment is larger than its raw bytes, so this much is enough for all of them.
                bound = align_up(piece.extent.part.size_bytes, PAGE)
                if self._end and start + bound > self._max_shard_bytes:
                    self._submit(placed)
                    placed = []
                    self._close()
                    start = 0
                piece.extent.start = self._base + start
            piece.extent.sizes.append(piece.size)
            placed.append((start, piece))
            self._end = start + piece.size
        self._submit(placed)

    def _submit(self, placed: list[tuple[int, _Piece]]) -> None:
        if not placed:
            return
        while len(self._writing) >= _IN_FLIGHT:
            self._settle()
        borrowed = any(piece.is_borrowed for _, piece in placed)
        self._writing.append((self._disk.submit(self._write_now, placed), borrowed))

    def _write_now(self, placed: list[tuple[int, _Piece]]) -> None:
        """Runs in the writing thread."""
        for is_cut, group in groupby(placed, key=lambda entry: entry[1].extent.is_cut):
            entries = list(group)
            checksums = self._files.write(
                [(start, piece.address, piece.size) for start, piece in entries],
                self._uncounted if is_cut else self._control,
            )
            for (_, piece), checksum in zip(entries, checksums, strict=True):
                piece.extent.checksums.append(checksum)

    def _close(self) -> None:
        """End a partition; the writing thread does so after what was submitted."""
        self._writing.append((self._disk.submit(self._files.close, self._end), False))
        self._base += align_up(self._end, PAGE)
        self._end = 0

    def _settle(self) -> None:
        """Wait for the oldest write, and raise what it raised."""
        self._writing.popleft()[0].result()


def _batches(extents: list[_Extent]) -> Iterator[list[_Piece]]:
    """Cut extents into pieces, in batches that are worth coding at once."""
    batch: list[_Piece] = []
    size = 0
    for extent in extents:
        part = extent.part
        step = SEGMENT_BYTES if extent.is_cut else part.size_bytes
        for start in range(0, part.size_bytes, step):
            piece = _Piece(extent, part.address + start, min(step, part.size_bytes - start))
            batch.append(piece)
            size += 0 if piece.is_borrowed else align_up(piece.size, ALIGNMENT)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _kept_bytes(extent: _Extent) -> int:
    """Bytes of an extent that are stored as they are."""
    if not extent.is_cut:
        return extent.part.size_bytes
    kept = 0
    left = extent.part.size_bytes
    for size in extent.sizes:
        kept += size if size == min(left, SEGMENT_BYTES) else 0
        left -= SEGMENT_BYTES
    return kept
