"""Open safetensors files as published: one file, a directory of files, or shards with an index."""

from __future__ import annotations

from itertools import chain, repeat
from math import prod
from operator import itemgetter, sub
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from sllm_store.checkpoint import fields
from sllm_store.checkpoint.dtype import ITEM_SIZES, SAFETENSORS_NAMES
from sllm_store.checkpoint.extents import unique_extents
from sllm_store.checkpoint.fields import INT64_MAX, TENSORS_MAX, FieldError, shown
from sllm_store.checkpoint.files import data_file, parse_json, read_json, read_range
from sllm_store.checkpoint.model import Checkpoint, Extent, Tensor, contiguous_stride
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

FORMAT = "safetensors"
INDEX_FILE = "model.safetensors.index.json"
SUFFIX = ".safetensors"
SINGLE_FILE = f"model{SUFFIX}"
HEADER_BYTES_MAX = 100_000_000
METADATA_KEY = "__metadata__"

_FIELDS = itemgetter("dtype", "shape", "data_offsets")


class _Kind(NamedTuple):
    """What the tensors of one element type and shape have in common."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    size_bytes: int


class _Ranges(NamedTuple):
    """The kind of each tensor of a file, and where in the data it starts and ends."""

    kinds: Sequence[_Kind]
    starts: Sequence[int]
    ends: Sequence[int]


class _Header:
    """The tensors of one file: the kind of each, and its extent in file `number`."""

    def __init__(self, path: Path, number: int, *, root: Path | None) -> None:
        self.path = path
        self.file = data_file(path, root=root)
        value, data_start = self._read(root)
        try:
            raw = fields.mapping(value, "the header")
            self.metadata = {
                key: fields.text(item, f"{METADATA_KEY}.{shown(key)}")
                for key, item in fields.mapping(raw.pop(METADATA_KEY, {}), METADATA_KEY).items()
            }
            ranges = _parse_together(raw) or _parse_each(raw)
            _check_layout(list(raw), ranges, self.file.size_bytes - data_start)
        except FieldError as error:
            raise InvalidCheckpointError(f"{path}: {error}") from None
        places = map(data_start.__add__, ranges.starts)
        sizes = map(sub, ranges.ends, ranges.starts)
        extents = map(
            Extent._make, zip(repeat(number), places, sizes, repeat(None), repeat(()), strict=False)
        )
        self.tensors: dict[str, tuple[_Kind, Extent]] = dict(
            zip(raw, zip(ranges.kinds, extents, strict=True), strict=True)
        )

    def _read(self, root: Path | None) -> tuple[object, int]:
        size = self.file.size_bytes
        prefix = read_range(self.path, 0, 8, root=root)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8 or length > HEADER_BYTES_MAX:
            raise InvalidCheckpointError(
                f"{self.path}: header length is {length} in a file of {size} bytes (at most "
                f"{HEADER_BYTES_MAX} is read); it is truncated or not safetensors"
            )
        data = read_range(self.path, 8, length, root=root)
        if len(data) < length or not data.startswith(b"{"):
            raise InvalidCheckpointError(f"{self.path}: header does not begin with '{{'")
        return parse_json(data, source=f"{self.path}: header"), 8 + length


def _parse_together(raw: Mapping[str, Any]) -> _Ranges | None:
    """Check all entries at once, column by column; None where one of them is not as it should be.

    There are tens of thousands of entries and few kinds. What is wrong, _parse_each finds.
    """
    try:
        codes, shapes, offsets = zip(*map(_FIELDS, raw.values()), strict=True)
        starts, ends = zip(*offsets, strict=True)
        numbers = {*map(type, chain.from_iterable(shapes)), *map(type, starts), *map(type, ends)}
        if numbers != {int} or {*map(type, shapes), *map(type, offsets)} != {list}:
            return None
        by_key = _Kinds()
        kinds = [by_key[key] for key in zip(codes, map(tuple, shapes), strict=True)]
    except (KeyError, TypeError, ValueError):
        return None
    if min(starts) < 0 or max(ends) > INT64_MAX:
        return None
    if list(map(sub, ends, starts)) != [kind.size_bytes for kind in kinds]:
        return None
    return _Ranges(kinds, starts, ends)


class _Kinds(dict[tuple[str, tuple[int, ...]], _Kind]):
    """What a header's dtypes and shapes say; each is looked at once."""

    def __missing__(self, key: tuple[str, tuple[int, ...]]) -> _Kind:
        code, shape = key
        kind = self[key] = _kind(code, list(shape))
        return kind


def _parse_each(raw: dict[str, object]) -> _Ranges:
    """Check one entry after the other; FieldError names the tensor."""
    kinds, starts, ends = [], [], []
    for name, item in raw.items():
        try:
            kind, start, end = _parse_tensor(item)
        except FieldError as error:
            raise FieldError(f"tensor {shown(name)}: {error}") from None
        kinds.append(kind)
        starts.append(start)
        ends.append(end)
    return _Ranges(kinds, starts, ends)


def _parse_tensor(item: object) -> tuple[_Kind, int, int]:
    """Return kind, start and end of one header entry."""
    raw = fields.mapping(item, "its entry")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in raw:
            raise FieldError(f"has no {key}")
    kind = _kind(raw["dtype"], raw["shape"])
    offsets = fields.integers(raw["data_offsets"], "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FieldError(f"data_offsets is {shown(raw['data_offsets'])}, not [begin, end]")
    if offsets[1] - offsets[0] != kind.size_bytes:
        raise FieldError(
            f"data_offsets span {offsets[1] - offsets[0]} bytes, but shape "
            f"{shown(list(kind.shape))} of {raw['dtype']} takes {kind.size_bytes}"
        )
    return kind, offsets[0], offsets[1]


def _kind(code: object, dimensions: object) -> _Kind:
    """Return what a header's dtype and shape say."""
    dtype = SAFETENSORS_NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FieldError(f"dtype is {shown(code)}, which is not an element type this release reads")
    shape = fields.shape(dimensions)
    if code == "F4":
        if not shape or shape[-1] % 2:
            raise FieldError(f"shape is {shown(list(shape))}, but two elements of F4 share a byte")
        shape = (*shape[:-1], shape[-1] // 2)
    return _Kind(dtype, shape, contiguous_stride(shape), prod(shape) * ITEM_SIZES[dtype])


def _check_layout(names: list[str], ranges: _Ranges, data_bytes: int) -> None:
    """The tensors must tile the data exactly: no hole, no overlap, no bytes left."""
    if (0, *ranges.ends) == (*ranges.starts, data_bytes):
        return
    end = 0
    numbers = range(len(names))
    for start, stop, number in sorted(zip(ranges.starts, ranges.ends, numbers, strict=True)):
        if start != end:
            what = "overlaps the one before" if start < end else "leaves a hole before it"
            raise FieldError(
                f"tensor {shown(names[number])}: data_offsets: {what} "
                f"({start} where {end} is expected)"
            )
        end = stop
    if end != data_bytes:
        raise FieldError(
            f"data_offsets end at {end}, but the data has {data_bytes} bytes; it is truncated or "
            "was written to"
        )


def open_safetensors(path: Path, *, root: Path | None) -> Checkpoint:
    """Return the checkpoint of a .safetensors file, or of a directory with such files."""
    index_path = path / INDEX_FILE
    if path.is_dir() and index_path.exists():
        weight_map = _read_weight_map(index_path, root=root)
        names = sorted(set(weight_map.values()))
        headers = {
            name: _Header(path / name, number, root=root) for number, name in enumerate(names)
        }
        for tensor, name in weight_map.items():
            if tensor not in headers[name].tensors:
                raise InvalidCheckpointError(
                    f"{index_path}: weight_map: {shown(tensor)} is not in {name}"
                )
        chosen = {tensor: headers[name].tensors[tensor] for tensor, name in weight_map.items()}
        return _build(path, list(headers.values()), chosen)
    shards = [_Header(file, number, root=root) for number, file in enumerate(_files_of(path))]
    chosen = {}
    for header in shards:
        for tensor in header.tensors.keys() & chosen.keys():
            owner = shards[chosen[tensor][1].file]
            raise InvalidCheckpointError(
                f"{header.path}: tensor {shown(tensor)} is in {owner.path.name} too"
            )
        chosen |= header.tensors
    return _build(path, shards, chosen)


def likely_files(names: Collection[str]) -> list[str]:
    """Return which files of a directory are the checkpoint, by all names that are there alone."""
    if INDEX_FILE in names:
        return [name for name in names if name.startswith("model-") and name.endswith(SUFFIX)]
    return [SINGLE_FILE] if SINGLE_FILE in names else [n for n in names if n.endswith(SUFFIX)]


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    single = path / SINGLE_FILE
    return [single] if single.exists() else sorted(path.glob(f"*{SUFFIX}"))


def _read_weight_map(index_path: Path, *, root: Path | None) -> dict[str, str]:
    """Return {tensor: file} of an index, every file a plain path below the directory."""
    value, _ = read_json(index_path, root=root)
    try:
        raw = fields.mapping(value, "the index")
        if "weight_map" not in raw:
            raise FieldError("has no weight_map")
        weight_map = fields.texts(raw["weight_map"], "weight_map")
        for file in set(weight_map.values()):
            pure = PurePosixPath(file)
            if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in file:
                raise FieldError(f"weight_map names {shown(file)}, not a file of the directory")
    except FieldError as error:
        raise InvalidCheckpointError(f"{index_path}: {error}") from None
    return weight_map


def _build(
    path: Path, headers: list[_Header], chosen: dict[str, tuple[_Kind, Extent]]
) -> Checkpoint:
    if len(chosen) > TENSORS_MAX:
        raise InvalidCheckpointError(f"{path}: more than {TENSORS_MAX} tensors")
    ranges = [extent for _, extent in chosen.values()]
    extents, numbers = unique_extents(list(chosen), ranges, source=str(path))
    parts = (
        (name, *kind[:3], number, 0)
        for (name, (kind, _)), number in zip(chosen.items(), numbers, strict=True)
    )
    tensors = dict(zip(chosen, map(Tensor._make, parts), strict=True))
    metadata: dict[str, object] = {}
    for header in headers:
        metadata.update(header.metadata)
    return Checkpoint(
        path=path,
        format=FORMAT,
        files=tuple(header.file for header in headers),
        extents=extents,
        tensors=tensors,
        metadata=metadata,
    )
