"""The tensors of a GGUF as Hugging Face has them: renamed, dequantised, rows in its order.

What comes out of one GGUF tensor is planned first, as slices of its bytes; each slice is then
converted on its own, so memory is bounded by the largest slice. Dequantisation is the `gguf`
package's; 134 million Q4_1 weights take about a second on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_store.convert.floats import FLOATS, NUMPY_TYPES, cast, cast_float32
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sllm_store.checkpoint.model import Checkpoint, Tensor
    from sllm_store.convert.gguf_architecture import Architecture, Renamed
    from sllm_store.convert.gguf_metadata import GgufMetadata

# Rope frequencies that the configuration carries instead (see gguf_config).
_IN_CONFIG = frozenset({"rope_freqs.weight"})
_BLOCKS = "gguf:"
_SLAB_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One tensor to make: which bytes of which file, and what to do with them.

    dtype is the stored one, perhaps 'gguf:Q4_1'; shape the one that comes out. heads: number of
    heads whose rows are interleaved for llama.cpp's rope, 0 where they are not.
    """

    name: str
    file: int
    offset: int
    size_bytes: int
    dtype: str
    target: str
    shape: tuple[int, ...]
    heads: int = 0
    transpose: bool = False

    @property
    def output_bytes(self) -> int:
        """Bytes of the tensor that comes out."""
        if self.target not in FLOATS:
            return self.size_bytes
        return prod(self.shape) * int(NUMPY_TYPES[self.target]().itemsize)

    def convert(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the tensor made of the planned bytes; bfloat16 comes as uint16."""
        stored = self.shape[::-1] if self.transpose else self.shape
        if self.heads:
            raw = _undo_interleaving(raw.reshape(stored[0], -1), self.heads).reshape(-1)
        values = self._decode(raw, rows=prod(stored[:-1])).reshape(stored)
        return np.ascontiguousarray(values.T if self.transpose else values)

    def _decode(self, raw: NDArray[np.uint8], *, rows: int) -> NDArray[Any]:
        if self.dtype.startswith(_BLOCKS):
            return self._dequantise(raw.reshape(rows, -1))
        if self.dtype in FLOATS:
            return cast(raw, source=self.dtype, target=self.target, name=self.name)
        return raw.view(np.dtype(self.dtype))

    def _dequantise(self, blocks: NDArray[np.uint8]) -> NDArray[Any]:
        """Return numbers for rows of blocks, a slab at a time: what is in between stays small."""
        rows, columns = len(blocks), prod(self.shape) // len(blocks)
        values = np.empty((rows, columns), NUMPY_TYPES[self.target])
        step = max(_SLAB_ELEMENTS // columns, 1)
        for start in range(0, rows, step):
            slab = _dequantise(blocks[start : start + step], self.dtype, self.name)
            values[start : start + step] = cast_float32(slab, target=self.target, name=self.name)
        return values


def plan_conversions(
    checkpoint: Checkpoint, architecture: Architecture, metadata: GgufMetadata, *, dtype: str
) -> list[Conversion]:
    """Plan every tensor, in the file's order; raise InvalidCheckpointError for an unknown one.

    dtype 'auto' keeps float tensors as they are and makes blocks float32, which is exact.
    """
    planner = _Planner(checkpoint, architecture, _heads(architecture, metadata), dtype)
    plan = [
        conversion
        for tensor in checkpoint.tensors.values()
        if tensor.name not in _IN_CONFIG
        for conversion in planner.plan(tensor)
    ]
    if not plan:
        raise InvalidCheckpointError(
            f"{checkpoint.path}: the file has no tensors; a vocabulary alone is not a model"
        )
    return plan


@dataclass(frozen=True, slots=True)
class _Planner:
    checkpoint: Checkpoint
    architecture: Architecture
    heads: dict[str, int]
    dtype: str

    def plan(self, tensor: Tensor) -> Iterator[Conversion]:
        """Plan what comes out of one GGUF tensor: itself, or one tensor per expert."""
        renamed = self.architecture.rename(tensor.name)
        if renamed is None:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: {self.architecture.class_name} has no place for the "
                f"tensor {tensor.name!r}, so the file cannot be converted"
            )
        if 0 in tensor.shape:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: the tensor {tensor.name!r} has no elements "
                f"(shape {tensor.shape}), so the file cannot be converted"
            )
        extent = self.checkpoint.extents[tensor.extent]
        parts = tensor.shape[0] if renamed.expert else 1
        size_bytes = extent.size_bytes // parts
        for part in range(parts):
            yield Conversion(
                name=renamed.name.format(part) if renamed.expert else renamed.name,
                file=extent.file,
                offset=extent.offset + part * size_bytes,
                size_bytes=size_bytes,
                dtype=tensor.dtype,
                target=self._target(tensor.dtype),
                shape=self._shape(tensor, renamed),
                heads=self._heads_of(tensor, renamed),
                transpose=self._transposes(tensor, renamed),
            )

    def _shape(self, tensor: Tensor, renamed: Renamed) -> tuple[int, ...]:
        if renamed.expert:
            return tensor.shape[1:]
        if renamed.stem in self.architecture.unsqueezed:
            return (1, *tensor.shape)
        return tensor.shape[::-1] if self._transposes(tensor, renamed) else tensor.shape

    def _transposes(self, tensor: Tensor, renamed: Renamed) -> bool:
        return len(tensor.shape) == 2 and renamed.stem in self.architecture.transposed

    def _heads_of(self, tensor: Tensor, renamed: Renamed) -> int:
        heads = self.heads.get(renamed.stem, 0)
        if heads and tensor.shape[0] % (2 * heads):
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: {tensor.name} has {tensor.shape[0]} rows, which "
                f"{heads} heads of an even size cannot share"
            )
        return heads

    def _target(self, stored: str) -> str:
        if stored not in FLOATS and not stored.startswith(_BLOCKS):
            return stored
        if self.dtype == "auto":
            return "float32" if stored.startswith(_BLOCKS) else stored
        return self.dtype


def _heads(architecture: Architecture, metadata: GgufMetadata) -> dict[str, int]:
    """Return the heads per stem whose rows are interleaved."""
    if not architecture.interleaved_rope:
        return {}
    query = metadata.integer("{arch}.attention.head_count")
    return {"attn_q": query, "attn_k": metadata.integer("{arch}.attention.head_count_kv", query)}


def _undo_interleaving(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    """Return rows (x0 y0 x1 y1 ...) of each head as (x0 x1 ... y0 y1 ...)."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2))


def _dequantise(rows: NDArray[np.uint8], dtype: str, name: str) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType, quants  # Two tenths of a second, for this alone.

    kind = dtype.removeprefix(_BLOCKS)
    try:
        # A scale that is infinite or not a number is what the file says, not our mistake.
        with np.errstate(all="ignore"):
            values: NDArray[np.float32] = quants.dequantize(rows, GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError) as error:
        raise InvalidCheckpointError(
            f"tensor {name} has {kind} blocks, which the gguf package cannot dequantise: use a "
            "file with another quantisation"
        ) from error
    return values
