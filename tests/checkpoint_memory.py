"""Tensors in plain memory, and upstream's own rules of writing and reading, as oracles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from sllm_store import native
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.writer import Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint, Extent, Segment

Described = tuple[bytes, tuple[int, ...], str]


class Memory:
    """Storages made of bytes, and tensors over them."""

    def __init__(self) -> None:
        self._storages: dict[str, np.ndarray] = {}

    def storage(self, name: str, content: bytes) -> None:
        """Make a storage."""
        # One byte more, because an empty array has no address of its own.
        array = np.frombuffer(content + b"\0", dtype=np.uint8).copy()
        self._storages[name] = array

    def view(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        *,
        storage: str,
        stride: tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> Source:
        """Return a tensor over a storage."""
        array = self._storages[storage]
        return Source(
            name=name,
            dtype=dtype,
            shape=shape,
            stride=contiguous_stride(shape) if stride is None else stride,
            storage_offset=offset,
            storage=storage,
            address=array.ctypes.data,
            size_bytes=array.nbytes - 1,
        )

    def tensor(self, name: str, content: bytes, dtype: str = "uint8") -> Source:
        """Return a one-dimensional tensor with a storage of its own."""
        self.storage(name, content)
        return self.view(name, dtype, (len(content) // ITEM_SIZES[dtype],), storage=name)

    def elements(self, source: Source) -> bytes:
        """Return the bytes of a tensor's elements, in row-major order."""
        return gather(bytes(self._storages[str(source.storage)]), source)


def gather(raw: bytes, view: object, *, start: int | None = None) -> bytes:
    """Return a strided view's elements out of raw bytes; `start` replaces its storage offset."""
    shape, stride, dtype = view.shape, view.stride, view.dtype  # type: ignore[attr-defined]
    if 0 in shape:
        return b""
    item = ITEM_SIZES[dtype]
    first = view.storage_offset * item if start is None else start  # type: ignore[attr-defined]
    buffer = np.frombuffer(raw, dtype=f"V{item}", offset=first, count=(len(raw) - first) // item)
    strides = tuple(step * item for step in stride)
    return np.lib.stride_tricks.as_strided(buffer, shape, strides).tobytes()


def read_as_upstream(directory: Path) -> dict[str, Described]:
    """Read a checkpoint as ServerlessLLM does: the index, and files found by their lengths alone.

    Its reader knows neither storage offsets nor checkpoint.json.
    """
    data = b""
    number = 0
    while (path := directory / f"tensor.data_{number}").exists():
        data += path.read_bytes()
        number += 1
    result: dict[str, Described] = {}
    for name, entry in json.loads((directory / "tensor_index.json").read_text()).items():
        offset, size, shape, stride, dtype = entry
        view = Source(
            name=name,
            dtype=dtype.removeprefix("torch."),
            shape=tuple(shape),
            stride=tuple(stride),
            storage_offset=0,
            storage=name,
            address=0,
            size_bytes=size,
        )
        content = gather(data[offset : offset + size], view)
        result[name] = content, view.shape, view.dtype
    return result


def write_as_upstream(
    directory: Path,
    tensors: Mapping[str, Described],
    *,
    partition_bytes: int = 10 << 30,
    padding: bytes = b"\xa5",
) -> None:
    """Write a checkpoint as ServerlessLLM does: storages padded to 8 bytes with heap garbage."""
    directory.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[object]] = {}
    parts = [b""]
    base = 0
    for name, (content, shape, dtype) in tensors.items():
        if parts[-1] and len(parts[-1]) + len(content) > partition_bytes:
            base += len(parts[-1])
            parts.append(b"")
        stride = list(contiguous_stride(shape))
        offset = base + len(parts[-1])
        index[name] = [offset, len(content), list(shape), stride, f"torch.{dtype}"]
        parts[-1] += content + padding * (-len(content) % 8)
    for number, part in enumerate(parts):
        (directory / f"tensor.data_{number}").write_bytes(part)
    (directory / "tensor_index.json").write_text(json.dumps(index))


def read_back(checkpoint: Checkpoint) -> dict[str, Described]:
    """Read every tensor of an opened checkpoint straight from its extents."""
    result: dict[str, Described] = {}
    for name, tensor in checkpoint.all_tensors().items():
        extent = checkpoint.extents[tensor.extent]
        raw = read_raw(checkpoint.files[extent.file].path.read_bytes(), extent)
        elements = raw if tensor.is_blocks else gather(raw, tensor)
        result[name] = elements, tensor.shape, tensor.dtype
    return result


def read_raw(content: bytes, extent: Extent) -> bytes:
    """Return the bytes of an extent out of its file's, each segment decoded by itself."""
    if not extent.segments:
        raw = content[extent.offset : extent.offset + extent.size_bytes]
    else:
        raw = b"".join(decoded(content, segment) for segment in extent.segments)
    assert len(raw) == extent.size_bytes
    return raw


def decoded(content: bytes, segment: Segment) -> bytes:
    """Return the bytes of a segment before coding."""
    stored = content[segment.offset : segment.offset + segment.stored_bytes]
    if not segment.is_coded:
        return stored
    raw = np.empty(segment.raw_bytes, dtype=np.uint8)
    source = np.frombuffer(stored, dtype=np.uint8)
    native.decode_segment(source.ctypes.data, len(stored), raw.ctypes.data, segment.raw_bytes)
    return raw.tobytes()


def weights(count: int, *, seed: int = 0, dtype: str = "bfloat16") -> bytes:
    """Return 16-bit floats as trained weights have them: normal, around a small width."""
    values = np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32)
    if dtype == "float16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
