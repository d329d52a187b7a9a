"""checkpoint.json: what tensor_index.json cannot say about a checkpoint of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, cast

from sllm_store.checkpoint import fields
from sllm_store.checkpoint.fields import FieldError, shown
from sllm_store.checkpoint.index import (
    COMPRESSED_INDEX_FILE,
    INDEX_FILE,
    Entry,
    entry_list,
    parse_entries,
)
from sllm_store.checkpoint.model import RAW
from sllm_store.errors import InvalidCheckpointError
from sllm_store.units import div_ceil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MANIFEST_FILE = "checkpoint.json"
FORMAT = "sllm-checkpoint"
RANS = "rans-f16"
VERSIONS = {1: RAW, 2: RANS}  # Each with its encoding.
PARTITIONS_MAX = 1 << 16
CRC_MAX = 2**32 - 1
SEGMENT_BYTES = 1 << 20  # What one segment of a compressed extent holds; the last may hold less.
SEGMENT_ALIGNMENT = 4096


class StoredExtent(NamedTuple):
    """An extent in the manifest: where its bytes count from, and where the partitions have them.

    Both offsets are global. `offset` is into the bytes as they are in memory, `stored_offset` into
    the partitions; without compression they are the same. `stored_sizes` and `checksums` are those
    of the segments, empty where the extent is stored as it is.
    """

    offset: int
    size_bytes: int
    crc32c: int
    stored_offset: int
    stored_sizes: tuple[int, ...] = ()
    checksums: tuple[int, ...] = ()

    @property
    def is_coded(self) -> bool:
        """Whether some segment is smaller than its part of the extent."""
        return bool(self.stored_sizes) and sum(self.stored_sizes) < self.size_bytes

    @property
    def span_bytes(self) -> int:
        """Bytes of the partition from its start to its end; each segment starts aligned."""
        if not self.stored_sizes:
            return self.size_bytes
        return segment_starts(self.stored_sizes)[-1] + self.stored_sizes[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of checkpoint.json; extents ascend."""

    partitions: tuple[int, ...]
    extents: tuple[StoredExtent, ...]
    index_crc32c: int
    encoding: str = RAW
    storage_offsets: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""

    @property
    def index_file(self) -> str:
        """The index beside it: a compressed one has a name that other readers do not know."""
        return INDEX_FILE if self.encoding == RAW else COMPRESSED_INDEX_FILE


def segment_starts(stored_sizes: Sequence[int]) -> list[int]:
    """Return where each segment of an extent starts, from its first: one behind the other."""
    taken = [size + -size % SEGMENT_ALIGNMENT for size in stored_sizes[:-1]]
    return list(accumulate(taken, initial=0))


def partition_name(number: int) -> str:
    """Return the name of a partition: tensor.data_0, tensor.data_1, ..."""
    return f"tensor.data_{number}"


def dump_manifest(manifest: Manifest) -> str:
    """Return the text of checkpoint.json."""
    lines = {
        "format": FORMAT,
        "version": next(key for key, value in VERSIONS.items() if value == manifest.encoding),
        "producer": manifest.producer,
        "encoding": manifest.encoding,
        "index_crc32c": manifest.index_crc32c,
        "partitions": [
            {"file": partition_name(number), "size_bytes": size}
            for number, size in enumerate(manifest.partitions)
        ],
        "extents": [_extent_list(extent, manifest.encoding) for extent in manifest.extents],
        "storage_offsets": dict(manifest.storage_offsets),
        "buffers": {name: entry_list(entry) for name, entry in manifest.buffers.items()},
        "aliases": dict(manifest.aliases),
    }
    inner = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in lines.items())
    return f"{{\n{inner}\n}}\n"


def parse_manifest(value: object, *, source: str) -> Manifest:
    """Return a manifest from parsed JSON; InvalidCheckpointError names `source` and the field."""
    try:
        raw = fields.mapping(value, "the manifest")
        encoding = _encoding(raw)
        buffers = parse_entries(raw.get("buffers", {}), source=f"{source}: buffers")
        return Manifest(
            partitions=_partitions(_required(raw, "partitions")),
            extents=_extents(_required(raw, "extents"), encoding),
            encoding=encoding,
            index_crc32c=fields.integer(
                _required(raw, "index_crc32c"), "index_crc32c", maximum=CRC_MAX
            ),
            storage_offsets={
                name: fields.integer(item, f"storage_offsets of {shown(name)}")
                for name, item in fields.mapping(
                    raw.get("storage_offsets", {}), "storage_offsets"
                ).items()
            },
            buffers=buffers,
            aliases={
                name: fields.text(item, f"alias {shown(name)}")
                for name, item in fields.mapping(raw.get("aliases", {}), "aliases").items()
            },
            producer=fields.text(raw.get("producer", ""), "producer"),
        )
    except FieldError as error:
        raise InvalidCheckpointError(f"{source}: {error}") from None


def _extent_list(extent: StoredExtent, encoding: str) -> list[object]:
    if encoding == RAW:
        return list(extent[:3])
    return list(extent if extent.is_coded else extent[:4])


def _encoding(raw: dict[str, object]) -> str:
    kind, version, encoding = (_required(raw, key) for key in ("format", "version", "encoding"))
    if kind != FORMAT:
        raise FieldError(f"format is {shown(kind)}, not {FORMAT!r}")
    if type(version) is not int or version not in VERSIONS:
        raise FieldError(
            f"version is {shown(version)}, and this release reads versions "
            f"{' and '.join(map(str, VERSIONS))}; upgrade serverless-llm, or save the checkpoint "
            "again"
        )
    if encoding != VERSIONS[version]:
        raise FieldError(
            f"encoding is {shown(encoding)}, and in version {version} this release reads "
            f"{VERSIONS[version]!r}"
        )
    return VERSIONS[version]


def _required(raw: dict[str, object], key: str) -> object:
    if key not in raw:
        raise FieldError(f"has no {key}")
    return raw[key]


def _partitions(value: object) -> tuple[int, ...]:
    items = fields.sequence(value, "partitions")
    if not 1 <= len(items) <= PARTITIONS_MAX:
        raise FieldError(f"partitions has {len(items)} entries, not 1 to {PARTITIONS_MAX}")
    sizes = []
    for number, item in enumerate(items):
        raw = fields.mapping(item, f"partitions[{number}]")
        name = _required(raw, "file")
        # The name is fixed, so that it can never lead out of the directory.
        if name != partition_name(number):
            raise FieldError(
                f"partitions[{number}].file is {shown(name)}, not {partition_name(number)!r}"
            )
        sizes.append(
            fields.integer(_required(raw, "size_bytes"), f"partitions[{number}].size_bytes")
        )
    return tuple(sizes)


def _extents(value: object, encoding: str) -> tuple[StoredExtent, ...]:
    parse = _raw_extent if encoding == RAW else _compressed_extent
    extents: list[StoredExtent] = []
    end = stored_end = 0
    for number, item in enumerate(fields.sequence(value, "extents")):
        extent = parse(item, f"extents[{number}]")
        if extent.size_bytes == 0:
            raise FieldError(f"extents[{number}] is empty; empty tensors need no extent")
        if extent.offset < end:
            raise FieldError(
                f"extents[{number}] at {extent.offset} overlaps the one before, to {end}"
            )
        if extent.stored_offset < stored_end:
            raise FieldError(
                f"extents[{number}] is stored at {extent.stored_offset}, where the one before "
                f"reaches to {stored_end}"
            )
        end = extent.offset + extent.size_bytes
        stored_end = extent.stored_offset + extent.span_bytes
        extents.append(extent)
    return tuple(extents)


def _raw_extent(item: object, field: str) -> StoredExtent:
    if not isinstance(item, list) or len(item) != 3:
        raise FieldError(f"{field} is {shown(item)}, not [offset, size, crc32c]")
    offset, size, crc = _range(item, field)
    return StoredExtent(offset, size, crc, offset)


def _compressed_extent(item: object, field: str) -> StoredExtent:
    if not isinstance(item, list) or len(item) not in {4, 6}:
        raise FieldError(
            f"{field} is {shown(item)}, not [offset, size, crc32c, stored offset] with two lists "
            "for its segments if it is coded"
        )
    offset, size, crc = _range(item, field)
    stored_offset = fields.integer(item[3], f"{field} stored offset")
    if len(item) == 4:
        return StoredExtent(offset, size, crc, stored_offset)
    sizes = _segment_numbers(item[4], f"{field} stored sizes", size, maximum=SEGMENT_BYTES)
    checksums = _segment_numbers(item[5], f"{field} checksums", size, maximum=CRC_MAX)
    if 0 in sizes:
        raise FieldError(f"{field} segment {sizes.index(0)} is stored in 0 bytes")
    last = size - (len(sizes) - 1) * SEGMENT_BYTES
    if sizes and sizes[-1] > last:
        raise FieldError(
            f"{field} segment {len(sizes) - 1} is stored in {sizes[-1]} bytes, more than its own "
            f"{last}"
        )
    extent = StoredExtent(offset, size, crc, stored_offset, sizes, checksums)
    if size and not extent.is_coded:
        raise FieldError(f"{field} lists segments, but none of them is coded")
    return extent


def _range(item: list[object], field: str) -> tuple[int, int, int]:
    return (
        fields.integer(item[0], f"{field} offset"),
        fields.integer(item[1], f"{field} size"),
        fields.integer(item[2], f"{field} crc32c", maximum=CRC_MAX),
    )


def _segment_numbers(
    value: object, field: str, size_bytes: int, *, maximum: int
) -> tuple[int, ...]:
    """Return one number per segment of an extent, each checked."""
    items = fields.sequence(value, field)
    if len(items) != div_ceil(size_bytes, SEGMENT_BYTES):
        raise FieldError(
            f"{field} has {len(items)} entries, and {size_bytes} bytes have "
            f"{div_ceil(size_bytes, SEGMENT_BYTES)} segments"
        )
    for item in items:
        if type(item) is not int or not 0 <= item <= maximum:
            fields.integer(item, f"an entry of {field}", maximum=maximum)
    return cast("tuple[int, ...]", tuple(items))
