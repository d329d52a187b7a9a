"""Open a checkpoint of ours or of upstream's: partitions and tensor_index.json."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sllm_store.checkpoint.checksum import crc32c
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.extents import Partitions, unique_extents
from sllm_store.checkpoint.fields import TENSORS_MAX, shown
from sllm_store.checkpoint.files import data_file, read_json
from sllm_store.checkpoint.index import COMPRESSED_INDEX_FILE, INDEX_FILE, Entry, parse_entries
from sllm_store.checkpoint.manifest import (
    MANIFEST_FILE,
    PARTITIONS_MAX,
    SEGMENT_ALIGNMENT,
    SEGMENT_BYTES,
    Manifest,
    StoredExtent,
    parse_manifest,
    partition_name,
    segment_starts,
)
from sllm_store.checkpoint.model import RAW, Checkpoint, Extent, Segment, Tensor
from sllm_store.errors import InvalidCheckpointError, ReadError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.model import DataFile

FORMAT = "sllm"
# Bytes that may follow the last tensor: padding to a block of the disk, never a whole one.
SLACK_BYTES = 4096

_PARTITION = re.compile(r"tensor\.data_(0|[1-9]\d{0,8})")


def open_indexed(directory: Path, *, root: Path | None) -> Checkpoint:
    """Return the checkpoint of a directory with an index."""
    manifest_path = directory / MANIFEST_FILE
    source = str(manifest_path)
    if not (manifest_path.exists() or manifest_path.is_symlink()):
        index_path = directory / INDEX_FILE
        if not (index_path.exists() or index_path.is_symlink()):
            raise InvalidCheckpointError(f"{source}: missing beside {COMPRESSED_INDEX_FILE}")
        entries = parse_entries(read_json(index_path, root=root)[0], source=str(index_path))
        return _open_upstream(directory, _partition_files(directory, root=root), entries)
    manifest = parse_manifest(read_json(manifest_path, root=root)[0], source=source)
    if manifest.encoding != RAW and (directory / INDEX_FILE).exists():
        raise InvalidCheckpointError(
            f"{directory / INDEX_FILE}: is beside a compressed checkpoint, which has none: another "
            "program saved over it; save the checkpoint again"
        )
    index_path = directory / manifest.index_file
    value, index_bytes = read_json(index_path, root=root)
    if crc32c(index_bytes) != manifest.index_crc32c:
        raise InvalidCheckpointError(
            f"{index_path}: is not the one that {source} was written with (index_crc32c differs); "
            "save the checkpoint again, or remove checkpoint.json if another program saved it"
        )
    entries = parse_entries(value, source=str(index_path))
    files = _partition_files(directory, root=root)
    _check_partitions(files, manifest, source=source)
    return _OursBuilder(directory, files, manifest).build(entries)


def _partition_files(directory: Path, *, root: Path | None) -> tuple[DataFile, ...]:
    """Return tensor.data_0 to tensor.data_N, with none missing between them."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError as error:
        raise ReadError(f"cannot read {directory}: {error.strerror}") from error
    numbers = sorted(int(matched[1]) for name in names if (matched := _PARTITION.fullmatch(name)))
    if len(numbers) > PARTITIONS_MAX:
        raise InvalidCheckpointError(f"{directory}: has {len(numbers)} partitions")
    for expected, number in enumerate(numbers or [-1]):
        if number != expected:
            raise InvalidCheckpointError(f"{directory / partition_name(expected)}: missing")
    return tuple(data_file(directory / partition_name(number), root=root) for number in numbers)


def _check_partitions(files: tuple[DataFile, ...], manifest: Manifest, *, source: str) -> None:
    if len(files) < len(manifest.partitions):
        missing = partition_name(len(files))
        raise InvalidCheckpointError(f"{source}: lists {missing}, which is missing")
    if len(files) > len(manifest.partitions):
        stale = files[len(manifest.partitions)].path
        raise InvalidCheckpointError(
            f"{stale}: not listed in checkpoint.json; it was left by another save, remove it"
        )
    for file, size in zip(files, manifest.partitions, strict=True):
        if file.size_bytes != size:
            raise InvalidCheckpointError(
                f"{file.path}: has {file.size_bytes} bytes where checkpoint.json says {size}; "
                "it is truncated or was written to"
            )


def _open_upstream(
    directory: Path, files: tuple[DataFile, ...], entries: Mapping[str, Entry]
) -> Checkpoint:
    """Build a checkpoint from the index alone, as ServerlessLLM writes it."""
    source = str(directory / INDEX_FILE)
    partitions = Partitions(files)
    ranges: list[Extent] = []
    for name, entry in entries.items():
        try:
            file, start = partitions.locate(entry.offset, entry.size_bytes)
        except ValueError as error:
            raise InvalidCheckpointError(
                f"{source}: tensor {shown(name)}: offset: {error}"
            ) from None
        ranges.append(Extent(file, start, entry.size_bytes))
    # A partition longer than it was written (left from an older, larger save) shifts every
    # tensor after it. Then the tensors end before the data does.
    end = max((entry.offset + entry.size_bytes for entry in entries.values()), default=0)
    if partitions.total_bytes - end >= SLACK_BYTES:
        raise InvalidCheckpointError(
            f"{source}: its tensors end {format_size(partitions.total_bytes - end)} before the "
            "tensor.data_* files do; files of an older save are mixed in, save it again"
        )
    extents, numbers = unique_extents(list(entries), ranges, source=source)
    tensors = {
        name: _tensor(name, entry, number)
        for (name, entry), number in zip(entries.items(), numbers, strict=True)
    }
    return Checkpoint(path=directory, format=FORMAT, files=files, extents=extents, tensors=tensors)


class _OursBuilder:
    """Builds a checkpoint from index and manifest: every tensor lies in a listed extent."""

    def __init__(self, directory: Path, files: tuple[DataFile, ...], manifest: Manifest) -> None:
        self._directory = directory
        self._files = files
        self._manifest = manifest
        self._source = str(directory / MANIFEST_FILE)
        partitions = Partitions(files)
        self._extents: list[Extent] = []
        self._numbers: dict[int, int] = {}
        for number, stored in enumerate(manifest.extents):
            try:
                file, start = partitions.locate(stored.stored_offset, stored.span_bytes)
            except ValueError as error:
                raise InvalidCheckpointError(
                    f"{self._source}: extents[{number}]: {error}"
                ) from None
            if stored.stored_sizes and start % SEGMENT_ALIGNMENT:
                raise InvalidCheckpointError(
                    f"{self._source}: extents[{number}]: its segments start at {start} of "
                    f"{files[file].path.name}, no multiple of {SEGMENT_ALIGNMENT}"
                )
            self._extents.append(
                Extent(
                    file=file,
                    offset=start,
                    size_bytes=stored.size_bytes,
                    crc32c=stored.crc32c,
                    segments=_segments(stored, start) if stored.stored_sizes else (),
                )
            )
            self._numbers[stored.offset] = number
        self._empty: int | None = None

    def build(self, entries: Mapping[str, Entry]) -> Checkpoint:
        """Return the checkpoint, its names checked against each other."""
        manifest = self._manifest
        if len(entries) + len(manifest.buffers) > TENSORS_MAX:
            raise InvalidCheckpointError(f"{self._source}: more than {TENSORS_MAX} tensors")
        for name in manifest.buffers:
            if name in entries:
                raise InvalidCheckpointError(
                    f"{self._source}: buffers: {shown(name)} is in {manifest.index_file} too"
                )
        for name in manifest.storage_offsets:
            if name not in entries and name not in manifest.buffers:
                raise InvalidCheckpointError(
                    f"{self._source}: storage_offsets: no tensor is named {shown(name)}"
                )
        for alias, name in manifest.aliases.items():
            known = name in entries or name in manifest.buffers
            if not known or alias in entries or alias in manifest.buffers:
                raise InvalidCheckpointError(
                    f"{self._source}: aliases: {shown(alias)} for {shown(name)} must give a new "
                    "name to an existing tensor"
                )
        tensors = {name: self._place(name, entry) for name, entry in entries.items()}
        buffers = {name: self._place(name, entry) for name, entry in manifest.buffers.items()}
        return Checkpoint(
            path=self._directory,
            format=FORMAT,
            files=self._files,
            extents=tuple(self._extents),
            tensors=tensors,
            buffers=buffers,
            aliases=manifest.aliases,
            metadata={"producer": manifest.producer},
            encoding=manifest.encoding,
        )

    def _place(self, name: str, entry: Entry) -> Tensor:
        storage_offset = self._manifest.storage_offsets.get(name, 0)
        if not entry.size_bytes:
            return _tensor(name, entry, self._empty_extent())
        start = entry.offset - storage_offset * ITEM_SIZES[entry.dtype]
        number = self._numbers.get(start)
        if number is None:
            raise InvalidCheckpointError(
                f"{self._source}: tensor {shown(name)}: no extent starts at {start}, its offset "
                f"{entry.offset} less its storage offset of {storage_offset} elements"
            )
        end, extent_end = entry.offset + entry.size_bytes, start + self._extents[number].size_bytes
        if end > extent_end:
            raise InvalidCheckpointError(
                f"{self._source}: tensor {shown(name)}: ends at {end}, beyond its extent's end "
                f"at {extent_end}"
            )
        return _tensor(name, entry, number, storage_offset=storage_offset)

    def _empty_extent(self) -> int:
        if self._empty is None:
            self._empty = len(self._extents)
            self._extents.append(Extent(file=0, offset=0, size_bytes=0))
        return self._empty


def _segments(stored: StoredExtent, start: int) -> tuple[Segment, ...]:
    """Return the segments of an extent whose first is at `start` of its file."""
    count = len(stored.stored_sizes)
    last_bytes = stored.size_bytes - (count - 1) * SEGMENT_BYTES
    return tuple(
        map(
            Segment,
            [start + offset for offset in segment_starts(stored.stored_sizes)],
            stored.stored_sizes,
            [SEGMENT_BYTES] * (count - 1) + [last_bytes],
            stored.checksums,
        )
    )


def _tensor(name: str, entry: Entry, extent: int, *, storage_offset: int = 0) -> Tensor:
    return Tensor(name, entry.dtype, entry.shape, entry.stride, extent, storage_offset)
