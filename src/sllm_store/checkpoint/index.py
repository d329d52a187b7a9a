"""tensor_index.json: what each tensor is, and where in the concatenation of the partitions.

Of a compressed checkpoint it is compressed_index.json, and offsets count bytes before coding.

Two forms are read: upstream's `[offset, size, shape, stride, "torch.dtype"]`, which is also the one
that is written, and the dictionary of upstream's documents, `{"offset", "size", "shape", "dtype"}`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from sllm_store.checkpoint import fields
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.fields import FieldError, shown
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX_FILE = "tensor_index.json"
# Of a compressed checkpoint. Other readers look for the first name, and must not find it: they
# would take coded bytes for tensors.
COMPRESSED_INDEX_FILE = "compressed_index.json"


class Entry(NamedTuple):
    """One tensor of an index; a million of them are quick to make.

    `offset` is global: into all partitions, one after another.
    """

    offset: int
    size_bytes: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


def parse_entries(value: object, *, source: str) -> dict[str, Entry]:
    """Return the tensors of an index in their order; errors name `source` and the tensor."""
    try:
        raw = fields.mapping(value, "the index")
    except FieldError as error:
        raise InvalidCheckpointError(f"{source}: {error}") from None
    entries: dict[str, Entry] = {}
    for name, item in raw.items():
        try:
            entries[name] = _parse_entry(item)
        except FieldError as error:
            raise InvalidCheckpointError(f"{source}: tensor {shown(name)}: {error}") from None
    return entries


def dump_entries(entries: Mapping[str, Entry]) -> str:
    """Return an index in upstream's form."""
    return json.dumps({name: entry_list(entry) for name, entry in entries.items()})


def entry_list(entry: Entry) -> list[object]:
    """Return an entry as upstream's list of five."""
    return [
        entry.offset,
        entry.size_bytes,
        list(entry.shape),
        list(entry.stride),
        f"torch.{entry.dtype}",
    ]


def _parse_entry(item: object) -> Entry:
    if isinstance(item, dict):
        missing = {"offset", "size", "shape", "dtype"} - item.keys()
        if missing:
            raise FieldError(f"has no {', '.join(sorted(missing))}")
        parts = [item[key] for key in ("offset", "size", "shape")]
        parts += [item.get("stride"), item["dtype"]]
    elif isinstance(item, list) and len(item) == 5:
        parts = item
    else:
        raise FieldError(f"is {shown(item)}, not [offset, size, shape, stride, dtype]")
    shape = fields.shape(parts[2])
    if parts[3] is None and isinstance(item, dict):
        stride = contiguous_stride(shape)
    else:
        stride = fields.integers(parts[3], "stride")
    entry = Entry(
        fields.integer(parts[0], "offset"),
        fields.integer(parts[1], "size"),
        shape,
        stride,
        fields.dtype(parts[4]),
    )
    _check_span(entry)
    return entry


def _check_span(entry: Entry) -> None:
    """Refuse a view that would reach beyond its bytes."""
    if len(entry.stride) != len(entry.shape):
        raise FieldError(f"stride has {len(entry.stride)} elements, shape {len(entry.shape)}")
    last = 0
    for size, step in zip(entry.shape, entry.stride, strict=True):
        if not size:
            return
        last += (size - 1) * step
    span = (last + 1) * ITEM_SIZES[entry.dtype]
    if span > entry.size_bytes:
        raise FieldError(
            f"size is {entry.size_bytes}, but shape {shown(list(entry.shape))} with stride "
            f"{shown(list(entry.stride))} of {entry.dtype} spans {span} bytes"
        )
