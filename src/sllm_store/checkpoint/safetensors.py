"""Open safetensors files as published: one file, a directory of files, or shards with an index."""

from __future__ import annotations

from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sllm_store.checkpoint import fields
from sllm_store.checkpoint.dtype import ITEM_SIZES, SAFETENSORS_NAMES
from sllm_store.checkpoint.extents import unique_extents
from sllm_store.checkpoint.fields import TENSORS_MAX, FieldError, shown
from sllm_store.checkpoint.files import data_file, parse_json, read_json, read_range
from sllm_store.checkpoint.model import Checkpoint, Tensor, contiguous_stride
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "safetensors"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
HEADER_BYTES_MAX = 100_000_000
METADATA_KEY = "__metadata__"


class _Header:
    """The tensors of one file: dtype, shape, and their range in the file."""

    def __init__(self, path: Path, *, root: Path | None) -> None:
        self.path = path
        self.file = data_file(path, root=root)
        value, self.data_start = self._read(root)
        try:
            raw = fields.mapping(value, "the header")
            self.metadata = {
                key: fields.text(item, f"{METADATA_KEY}.{shown(key)}")
                for key, item in fields.mapping(raw.pop(METADATA_KEY, {}), METADATA_KEY).items()
            }
        except FieldError as error:
            raise InvalidCheckpointError(f"{path}: {error}") from None
        self.tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for name, item in raw.items():
            try:
                self.tensors[name] = _parse_tensor(item)
            except FieldError as error:
                raise InvalidCheckpointError(f"{path}: tensor {shown(name)}: {error}") from None
        self._check_layout()

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

    def _check_layout(self) -> None:
        """The tensors must tile the data exactly: no hole, no overlap, no bytes left."""
        end = 0
        for name, (_, _, start, stop) in sorted(
            self.tensors.items(), key=lambda entry: entry[1][2:]
        ):
            if start != end:
                what = "overlaps the one before" if start < end else "leaves a hole before it"
                raise InvalidCheckpointError(
                    f"{self.path}: tensor {shown(name)}: data_offsets: {what} "
                    f"({start} where {end} is expected)"
                )
            end = stop
        if self.data_start + end != self.file.size_bytes:
            raise InvalidCheckpointError(
                f"{self.path}: data_offsets end at {end}, but the data has "
                f"{self.file.size_bytes - self.data_start} bytes; it is truncated or was written to"
            )


def _parse_tensor(item: object) -> tuple[str, tuple[int, ...], int, int]:
    """Return (dtype, shape, start, stop) of one header entry."""
    raw = fields.mapping(item, "its entry")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in raw:
            raise FieldError(f"has no {key}")
    code = raw["dtype"]
    dtype = SAFETENSORS_NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FieldError(f"dtype is {shown(code)}, which is not an element type this release reads")
    shape = fields.shape(raw["shape"])
    offsets = fields.integers(raw["data_offsets"], "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FieldError(f"data_offsets is {shown(raw['data_offsets'])}, not [begin, end]")
    if code == "F4":
        if not shape or shape[-1] % 2:
            raise FieldError(f"shape is {shown(list(shape))}, but two elements of F4 share a byte")
        shape = (*shape[:-1], shape[-1] // 2)
    size = prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != size:
        raise FieldError(
            f"data_offsets span {offsets[1] - offsets[0]} bytes, but shape {shown(list(shape))} "
            f"of {code} takes {size}"
        )
    return dtype, shape, offsets[0], offsets[1]


def open_safetensors(path: Path, *, root: Path | None) -> Checkpoint:
    """Return the checkpoint of a .safetensors file, or of a directory with such files."""
    index_path = path / INDEX_FILE
    if path.is_dir() and index_path.exists():
        weight_map = _read_weight_map(index_path, root=root)
        names = sorted(set(weight_map.values()))
        headers = {name: _Header(path / name, root=root) for name in names}
        for tensor, name in weight_map.items():
            if tensor not in headers[name].tensors:
                raise InvalidCheckpointError(
                    f"{index_path}: weight_map: {shown(tensor)} is not in {name}"
                )
        return _build(
            path, list(headers.values()), [(t, headers[f]) for t, f in weight_map.items()]
        )
    shards = [_Header(file, root=root) for file in _files_of(path)]
    owners: dict[str, _Header] = {}
    for header in shards:
        for tensor in header.tensors:
            if tensor in owners:
                raise InvalidCheckpointError(
                    f"{header.path}: tensor {shown(tensor)} is in {owners[tensor].path.name} too"
                )
            owners[tensor] = header
    return _build(path, shards, list(owners.items()))


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    single = path / SINGLE_FILE
    return [single] if single.exists() else sorted(path.glob("*.safetensors"))


def _read_weight_map(index_path: Path, *, root: Path | None) -> dict[str, str]:
    """Return {tensor: file} of an index, every file a plain path below the directory."""
    value, _ = read_json(index_path, root=root)
    try:
        raw = fields.mapping(value, "the index")
        if "weight_map" not in raw:
            raise FieldError("has no weight_map")
        weight_map = {
            name: fields.text(item, f"weight_map of {shown(name)}")
            for name, item in fields.mapping(raw["weight_map"], "weight_map").items()
        }
        for file in set(weight_map.values()):
            pure = PurePosixPath(file)
            if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in file:
                raise FieldError(f"weight_map names {shown(file)}, not a file of the directory")
    except FieldError as error:
        raise InvalidCheckpointError(f"{index_path}: {error}") from None
    return weight_map


def _build(path: Path, headers: list[_Header], chosen: list[tuple[str, _Header]]) -> Checkpoint:
    if len(chosen) > TENSORS_MAX:
        raise InvalidCheckpointError(f"{path}: more than {TENSORS_MAX} tensors")
    numbers = {id(header): number for number, header in enumerate(headers)}
    ranges = {}
    for name, header in chosen:
        _, _, start, stop = header.tensors[name]
        ranges[name] = (numbers[id(header)], header.data_start + start, stop - start)
    extents, extent_numbers = unique_extents(ranges, source=str(path))
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, object] = {}
    for name, header in chosen:
        dtype, shape, _, _ = header.tensors[name]
        tensors[name] = Tensor(
            name=name,
            dtype=dtype,
            shape=shape,
            stride=contiguous_stride(shape),
            extent=extent_numbers[ranges[name]],
        )
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
