"""checkpoint.json: what tensor_index.json cannot say about a checkpoint of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_store.checkpoint import fields
from sllm_store.checkpoint.fields import FieldError, shown
from sllm_store.checkpoint.index import Entry, entry_list, parse_entries
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST_FILE = "checkpoint.json"
FORMAT = "sllm-checkpoint"
VERSION = 1
ENCODING = "raw"
PARTITIONS_MAX = 1 << 16
CRC_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of checkpoint.json. `extents` are (global offset, size, CRC-32C), ascending."""

    partitions: tuple[int, ...]
    extents: tuple[tuple[int, int, int], ...]
    index_crc32c: int
    storage_offsets: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""


def partition_name(number: int) -> str:
    """Return the name of a partition: tensor.data_0, tensor.data_1, ..."""
    return f"tensor.data_{number}"


def dump_manifest(manifest: Manifest) -> str:
    """Return the text of checkpoint.json."""
    lines = {
        "format": FORMAT,
        "version": VERSION,
        "producer": manifest.producer,
        "encoding": ENCODING,
        "index_crc32c": manifest.index_crc32c,
        "partitions": [
            {"file": partition_name(number), "size_bytes": size}
            for number, size in enumerate(manifest.partitions)
        ],
        "extents": [list(extent) for extent in manifest.extents],
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
        _check_kind(raw)
        buffers = parse_entries(raw.get("buffers", {}), source=f"{source}: buffers")
        return Manifest(
            partitions=_partitions(_required(raw, "partitions")),
            extents=_extents(_required(raw, "extents")),
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


def _check_kind(raw: dict[str, object]) -> None:
    kind, version, encoding = (_required(raw, key) for key in ("format", "version", "encoding"))
    if kind != FORMAT:
        raise FieldError(f"format is {shown(kind)}, not {FORMAT!r}")
    if type(version) is not int or version != VERSION:
        raise FieldError(
            f"version is {shown(version)}, and this release reads version {VERSION}; "
            "upgrade serverless-llm, or save the checkpoint again"
        )
    if encoding != ENCODING:
        raise FieldError(f"encoding is {shown(encoding)}, and this release reads {ENCODING!r}")


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


def _extents(value: object) -> tuple[tuple[int, int, int], ...]:
    extents: list[tuple[int, int, int]] = []
    end = 0
    for number, item in enumerate(fields.sequence(value, "extents")):
        if not isinstance(item, list) or len(item) != 3:
            raise FieldError(f"extents[{number}] is {shown(item)}, not [offset, size, crc32c]")
        offset = fields.integer(item[0], f"extents[{number}] offset")
        size = fields.integer(item[1], f"extents[{number}] size")
        crc = fields.integer(item[2], f"extents[{number}] crc32c", maximum=CRC_MAX)
        if size == 0:
            raise FieldError(f"extents[{number}] is empty; empty tensors need no extent")
        if offset < end:
            raise FieldError(f"extents[{number}] at {offset} overlaps the one before, to {end}")
        end = offset + size
        extents.append((offset, size, crc))
    return tuple(extents)
