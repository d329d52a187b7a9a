"""Read extents as they are in memory, whatever way their file has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from sllm_store import native
from sllm_store.checkpoint.manifest import SEGMENT_ALIGNMENT, SEGMENT_BYTES
from sllm_store.errors import InvalidCheckpointError, ReadError
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm_store.checkpoint.model import Extent, Segment

BATCH_SEGMENTS = 64


def read_extent(file: native.File, extent: Extent, address: int) -> None:
    """Read all of an extent to memory, decoded; the page cache may answer.

    Raises ReadError naming the file, and InvalidCheckpointError if a segment cannot be decoded.
    """
    try:
        if not extent.segments:
            file.read_into(extent.offset, address, extent.size_bytes)
            return
        stored = native.HostBuffer(max(segment.stored_bytes for segment in extent.segments))
        for segment in extent.segments:
            if segment.is_coded:
                file.read_into(segment.offset, stored.address, segment.stored_bytes)
                _decode(file, segment, stored.address, address)
            else:
                file.read_into(segment.offset, address, segment.stored_bytes)
            address += segment.raw_bytes
    except native.NativeError as error:
        raise ReadError(f"reading {file.path} failed: {error.strerror}") from error


class ExtentDecoder:
    """Reads compressed extents of one file and compares them, stored and decoded.

    A context manager: it has threads of its own, and memory for a batch of segments, twice.
    """

    def __init__(
        self, file: native.File, *, mode: str, threads: int, control: native.Control
    ) -> None:
        self._file = file
        self._mode = mode
        self._threads = threads
        self._control = control
        self._stored = native.HostBuffer(BATCH_SEGMENTS * SEGMENT_BYTES)
        self._raw = native.HostBuffer(BATCH_SEGMENTS * SEGMENT_BYTES)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="sllm-decode")

    def __enter__(self) -> Self:
        """Return the decoder."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the threads."""
        self._executor.shutdown(cancel_futures=True)

    def check(self, extent: Extent) -> Iterator[str]:
        """Yield what is wrong with an extent; nothing if every byte is as it was saved."""
        checksum, is_good = 0, True
        for first in range(0, len(extent.segments), BATCH_SEGMENTS):
            batch = extent.segments[first : first + BATCH_SEGMENTS]
            try:
                places = self._read(batch)
            except native.NativeError as error:
                yield f"cannot be read: {error}"
                return
            for segment, result in zip(
                batch,
                self._executor.map(self._check, batch, *zip(*places, strict=True)),
                strict=True,
            ):
                if isinstance(result, str):
                    yield result
                    is_good = False
                else:
                    checksum = native.crc32c_combine(checksum, result, segment.raw_bytes)
        if is_good and checksum != extent.crc32c:
            yield f"decoded, CRC-32C is {checksum:#010x}, but {extent.crc32c:#010x} was saved"

    def _read(self, batch: Sequence[Segment]) -> list[tuple[int, int]]:
        """Read segments; return where each is, and where it can be decoded to."""
        places: list[tuple[int, int]] = []
        reads: list[tuple[int, int, int, int, int]] = []
        offset = 0
        for number, segment in enumerate(batch):
            reads.append((0, 0, segment.offset, segment.stored_bytes, offset))
            places.append(
                (self._stored.address + offset, self._raw.address + number * SEGMENT_BYTES)
            )
            offset = align_up(offset + segment.stored_bytes, SEGMENT_ALIGNMENT)
        native.run_transfer(
            [self._file],
            [(self._stored.address, -1)],
            reads,
            [],
            [],
            mode=self._mode,
            threads=self._threads,
            control=self._control,
        )
        return places

    def _check(self, segment: Segment, stored: int, raw: int) -> int | str:
        """Return the CRC-32C of a segment's raw bytes, or what is wrong with it."""
        where = f"segment at offset {segment.offset}"
        checksum = native.crc32c(stored, segment.stored_bytes)
        if checksum != segment.crc32c:
            return f"{where}: CRC-32C is {checksum:#010x}, but {segment.crc32c:#010x} was saved"
        if not segment.is_coded:
            return checksum
        try:
            native.decode_segment(stored, segment.stored_bytes, raw, segment.raw_bytes)
        except native.NativeError as error:
            return f"{where} cannot be decoded: {error.strerror}"
        return native.crc32c(raw, segment.raw_bytes)


def _decode(file: native.File, segment: Segment, stored: int, address: int) -> None:
    try:
        native.decode_segment(stored, segment.stored_bytes, address, segment.raw_bytes)
    except native.NativeError as error:
        raise InvalidCheckpointError(
            f"{file.path}: the segment at offset {segment.offset} cannot be decoded: "
            f"{error.strerror}; restore the file, or save the checkpoint again"
        ) from error
