"""Parse the header of one GGUF file: versions 2 and 3, little-endian, every count with a limit.

The store's server reads files that it has no reason to trust, and starts in well under a second,
so this is a parser of its own: no numpy, no mmap (a file cut short under a mapping kills the
process), long lists of strings decoded only when somebody looks at them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from sllm_store.checkpoint.dtype import BLOCK_SIZES, GGML_TYPES, contiguous_bytes
from sllm_store.checkpoint.fields import INT64_MAX, TENSORS_MAX, CutShortError, FieldError, shown
from sllm_store.checkpoint.files import read_range

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"GGUF"
HEADER_BYTES_MAX = 1 << 29
KEYS_MAX = 1 << 16
ARRAY_MAX = 1 << 22  # A vocabulary has a quarter of a million entries.
NAME_BYTES_MAX = 1 << 16
DIMENSIONS_MAX = 4
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MAX = 1 << 20

_READ_BYTES = 1 << 22
_STRING, _ARRAY, _BOOL = 8, 9, 7
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


class StringArray(Sequence[str]):
    """A list of strings in a header, decoded when first read: a vocabulary has 250,000 of them."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._count = count
        self._items: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if self._items is None:
            self._items = self._decode()
        return self._items[index]

    def _decode(self) -> tuple[str, ...]:
        items: list[str] = []
        position = 0
        for _ in range(self._count):
            start = position + 8
            (length,) = _LENGTH.unpack_from(self._data, position)
            position = start + length
            items.append(self._data[start:position].decode("utf-8", "replace"))
        return tuple(items)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a header. `offset` is in the file; `shape` is row-major, as torch has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path, size_bytes: int, *, root: Path | None) -> Header:
    """Return the header of a GGUF file of `size_bytes`; FieldError says which field is wrong."""
    cursor = _Cursor(path, size_bytes, root)
    if cursor.take(4, "magic") != MAGIC:
        raise FieldError("does not begin with 'GGUF': it is another kind of file, or damaged")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        big = " (a big-endian file)" if version & 0xFFFF == 0 else ""
        raise FieldError(
            f"version is {version}{big}, and versions 2 and 3, little-endian, are read"
        )
    tensors_total = cursor.count("tensor count", TENSORS_MAX)
    keys_total = cursor.count("key count", KEYS_MAX)
    metadata: dict[str, object] = {}
    for _ in range(keys_total):
        key = cursor.string("key")
        if key in metadata:
            raise FieldError(f"key {shown(key)} occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", f"type of {shown(key)}"), key)
    raw = [_tensor(cursor) for _ in range(tensors_total)]
    alignment = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if type(alignment) is not int or not _is_alignment(alignment):
        raise FieldError(f"general.alignment is {shown(alignment)}, not a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    return Header(metadata, _placed(raw, data_start, alignment, size_bytes))


class _Cursor:
    """Reads a header forward, in growing pieces of the file."""

    def __init__(self, path: Path, size_bytes: int, root: Path | None) -> None:
        self._path = path
        self._root = root
        self._limit = min(size_bytes, HEADER_BYTES_MAX)
        self._data = bytearray()
        self.position = 0

    def need(self, end: int, what: str) -> bytearray:
        """Return the data, holding at least `end` bytes."""
        if end > len(self._data):
            if end > self._limit:
                raise FieldError(
                    f"the header ends, or its {HEADER_BYTES_MAX} bytes do, in {what}; the file is "
                    "truncated: fetch it again"
                )
            want = min(max(end, 2 * len(self._data), _READ_BYTES), self._limit) - len(self._data)
            self._data += read_range(self._path, len(self._data), want, root=self._root)
            if end > len(self._data):
                raise CutShortError(f"the file was cut short while its {what} was read")
        return self._data

    def take(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes."""
        start = self.position
        data = self.need(start + size, what)
        self.position = start + size
        return bytes(data[start : self.position])

    def number(self, code: str, what: str) -> int:
        """Return the next number."""
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0])

    def count(self, what: str, maximum: int) -> int:
        """Return the next 64-bit count."""
        value = self.number("Q", what)
        if value > maximum:
            raise FieldError(f"{what} is {value}; at most {maximum} are read")
        return value

    def string(self, what: str) -> str:
        """Return the next short string, which must be UTF-8."""
        data = self.take(self.count(f"length of a {what}", NAME_BYTES_MAX), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise FieldError(f"a {what} is not UTF-8: {shown(data)}") from None


def _value(cursor: _Cursor, kind: int, key: str) -> object:
    what = f"value of {shown(key)}"
    if kind == _STRING:
        data = cursor.take(cursor.count(f"length of {what}", HEADER_BYTES_MAX), what)
        return data.decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(cursor, what)
    code = _SCALARS.get(kind)
    if code is None:
        raise FieldError(f"{what} has unknown type {kind}")
    (number,) = struct.unpack(f"<{code}", cursor.take(struct.calcsize(f"<{code}"), what))
    return bool(number) if kind == _BOOL else number


def _array(cursor: _Cursor, what: str) -> Sequence[object]:
    kind = cursor.number("I", f"element type of {what}")
    count = cursor.count(f"length of {what}", ARRAY_MAX)
    if kind == _STRING:
        return _string_array(cursor, count, what)
    code = _SCALARS.get(kind)
    if code is None:
        raise FieldError(f"{what} is a list of unknown type {kind}")
    data = cursor.take(count * struct.calcsize(f"<{code}"), what)
    numbers = struct.unpack(f"<{count}{code}", data)
    return tuple(map(bool, numbers)) if kind == _BOOL else numbers


def _string_array(cursor: _Cursor, count: int, what: str) -> StringArray:
    start = position = cursor.position
    data = cursor.need(position, what)
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        if position + 8 > len(data):
            cursor.need(position + 8, what)
        position += 8 + unpack(data, position)[0]
    cursor.position = start
    return StringArray(cursor.take(position - start, what), count)


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return (name, shape, type, offset in the data)."""
    name = cursor.string("tensor name")
    dimensions = cursor.number("I", f"dimensions of {shown(name)}")
    if dimensions > DIMENSIONS_MAX:
        raise FieldError(f"tensor {shown(name)} has {dimensions} dimensions, over {DIMENSIONS_MAX}")
    # The file has the fastest dimension first; torch has it last.
    sizes = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, f"shape of {shown(name)}"))
    kind = cursor.number("I", f"type of {shown(name)}")
    return name, sizes[::-1], kind, cursor.number("Q", f"offset of {shown(name)}")


def _placed(
    raw: list[tuple[str, tuple[int, ...], int, int]],
    data_start: int,
    alignment: int,
    size_bytes: int,
) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in raw:
        if name in tensors:
            raise FieldError(f"tensor {shown(name)} occurs twice")
        if kind not in GGML_TYPES:
            raise FieldError(f"tensor {shown(name)}: type is {kind}, which is not known")
        dtype = GGML_TYPES[kind][0]
        elements = 1
        for size in shape:
            elements *= max(size, 1)
        if elements > INT64_MAX // 16:
            raise FieldError(f"tensor {shown(name)}: shape {shown(list(shape))} is too large")
        per_block = BLOCK_SIZES.get(dtype, (1, 0))[0]
        if (shape[-1] if shape else 1) % per_block:
            raise FieldError(
                f"tensor {shown(name)}: shape {shown(list(shape))} does not divide into blocks of "
                f"{per_block} elements of {dtype}"
            )
        size = contiguous_bytes(dtype, shape)
        if offset % alignment:
            raise FieldError(f"tensor {shown(name)}: offset {offset} is not aligned to {alignment}")
        if size and data_start + offset + size > size_bytes:
            raise FieldError(
                f"tensor {shown(name)}: offset {offset} + {size} bytes is past the end of the file "
                f"of {size_bytes}; it is truncated"
            )
        tensors[name] = TensorInfo(name, dtype, shape, data_start + offset if size else 0, size)
    return tuple(tensors.values())


def _is_alignment(value: int) -> bool:
    return 1 <= value <= ALIGNMENT_MAX and value & (value - 1) == 0
