"""Read a checkpoint again, all of it, and compare every extent with its checksum.

A compressed extent is compared twice: the segments as they are stored, and all of it decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.decoding import ExtentDecoder
from sllm_store.checkpoint.fields import shown
from sllm_store.errors import ChecksumError, LoadCancelledError, ReadError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint, DataFile, Extent

BATCH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An extent whose bytes are wrong or cannot be read, and the tensors in it."""

    path: Path
    offset: int
    size_bytes: int
    tensors: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        names = ", ".join(shown(name) for name in self.tensors) or "no tensor"
        return (
            f"{self.path}: {self.size_bytes} bytes at offset {self.offset} ({names}): {self.what}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What verify_checkpoint found. `extents_compared` is 0 for formats without checksums.

    `bytes_decoded` is what compressed extents are in memory.
    """

    bytes_read: int
    bytes_decoded: int
    extents_total: int
    extents_compared: int
    problems: tuple[Problem, ...]

    @property
    def summary(self) -> str:
        """Return one sentence for a person."""
        if self.problems:
            return f"{len(self.problems)} of {self.extents_total} extents are bad"
        if not self.extents_compared and self.extents_total:
            return (
                f"all {self.extents_total} extents can be read; the format has no checksums, "
                "so there was nothing to compare them with"
            )
        good = f"all {self.extents_compared} extents are as they were saved"
        if not self.bytes_decoded:
            return good
        return f"{good}; {format_size(self.bytes_decoded)} of them are compressed and were decoded"

    def require_good(self) -> None:
        """Raise ChecksumError naming file, offset and tensors if something is wrong."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise ChecksumError(
                f"{self.problems[0]}{more}; restore the file, or save the checkpoint again"
            )


def verify_checkpoint(
    checkpoint: Checkpoint,
    *,
    threads: int = 4,
    control: native.Control | None = None,
    mode: str = "direct",
) -> Report:
    """Read every extent and compare; formats without checksums are only read.

    Mode 'direct' asks the disk, not the page cache, wherever the file system can. A file that is
    no longer the one that was opened raises InvalidCheckpointError.
    """
    checkpoint.require_unchanged()
    control = control or native.Control()
    groups: dict[int, list[int]] = {}
    for number, extent in enumerate(checkpoint.extents):
        if extent.size_bytes:
            groups.setdefault(extent.file, []).append(number)
    problems: list[tuple[int, str]] = []
    try:
        for file, numbers in groups.items():
            problems.extend(
                _check_file(
                    checkpoint,
                    numbers,
                    _Reader(checkpoint.files[file], threads=threads, control=control, mode=mode),
                )
            )
    except native.Cancelled:
        raise LoadCancelledError(f"verifying {checkpoint.path} was cancelled") from None
    extents = [checkpoint.extents[number] for group in groups.values() for number in group]
    return Report(
        bytes_read=sum(extent.stored_bytes for extent in extents),
        bytes_decoded=sum(extent.size_bytes for extent in extents if extent.segments),
        extents_total=len(extents),
        extents_compared=sum(extent.crc32c is not None for extent in extents),
        problems=_describe(checkpoint, problems),
    )


def _check_file(
    checkpoint: Checkpoint, numbers: list[int], reader: _Reader
) -> Iterator[tuple[int, str]]:
    """Yield (extent, what is wrong with it) for extents of one file."""
    extents = checkpoint.extents
    plain = [number for number in numbers if not extents[number].segments]
    for batch in _batches(extents, plain):
        yield from _check(extents, batch, reader)
    if len(plain) < len(numbers):
        with reader.decoder() as decoder:
            for number in numbers:
                if extents[number].segments:
                    yield from ((number, what) for what in decoder.check(extents[number]))


class _Reader:
    """One file, and how to read it; falls back where direct reads are not possible."""

    def __init__(self, file: DataFile, *, threads: int, control: native.Control, mode: str) -> None:
        try:
            self._file = native.File(str(file.path))
        except native.NativeError as error:
            raise ReadError(f"cannot open {file.path}: {error.strerror}") from error
        self._threads = threads
        self._control = control
        direct = mode == "direct" and self._file.direct_alignment > 0
        self._mode = "direct" if direct else "buffered" if mode == "direct" else mode

    def checksums(self, extents: Sequence[Extent]) -> list[int]:
        """Return the CRC-32C of each extent; NativeError if a read fails."""
        ranges = [(extent.offset, extent.size_bytes) for extent in extents]
        return native.checksum_ranges(
            self._file, ranges, mode=self._mode, threads=self._threads, control=self._control
        )

    def decoder(self) -> ExtentDecoder:
        """Return what compares compressed extents of this file."""
        return ExtentDecoder(
            self._file, mode=self._mode, threads=self._threads, control=self._control
        )


def _batches(extents: Sequence[Extent], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Cut a file's extents into batches that are worth a call."""
    batch: list[int] = []
    size = 0
    for number in numbers:
        batch.append(number)
        size += extents[number].size_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(
    extents: Sequence[Extent], batch: Sequence[int], reader: _Reader
) -> Iterator[tuple[int, str]]:
    """Yield (extent, what is wrong with it)."""
    try:
        checksums = reader.checksums([extents[number] for number in batch])
    except native.NativeError as error:
        if len(batch) == 1:
            yield batch[0], f"cannot be read: {error}"
            return
        # Which of them is it? The others may be good.
        for number in batch:
            yield from _check(extents, [number], reader)
        return
    for number, checksum in zip(batch, checksums, strict=True):
        expected = extents[number].crc32c
        if expected is not None and checksum != expected:
            yield number, f"CRC-32C is {checksum:#010x}, but {expected:#010x} was saved"


def _describe(checkpoint: Checkpoint, problems: Sequence[tuple[int, str]]) -> tuple[Problem, ...]:
    names: dict[int, list[str]] = {number: [] for number, _ in problems}
    if names:
        for name, tensor in checkpoint.all_tensors().items():
            if tensor.extent in names:
                names[tensor.extent].append(name)
    return tuple(
        Problem(
            path=checkpoint.files[checkpoint.extents[number].file].path,
            offset=checkpoint.extents[number].offset,
            size_bytes=checkpoint.extents[number].stored_bytes,
            tensors=tuple(names[number]),
            what=what,
        )
        for number, what in problems
    )
