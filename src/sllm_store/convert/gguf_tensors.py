"""The tensors of a GGUF as Hugging Face has them: renamed, dequantised, rows in its order.

What comes out of one GGUF tensor is planned first, as slices of its bytes; each slice is then
converted on its own, so memory is bounded by the largest slice. Dequantisation is the `gguf`
package's; 134 million Q4_1 weights take about a second on one core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_store.convert.floats import FLOATS, NUMPY_TYPES, cast, cast_float32
from sllm_store.convert.gguf_architecture import layer_count
from sllm_store.convert.gguf_delta import Change, find_changes
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from sllm_store.checkpoint.model import Checkpoint, Tensor
    from sllm_store.convert.gguf_architecture import Architecture, Renamed
    from sllm_store.convert.gguf_metadata import GgufMetadata

# Rope frequencies that the configuration carries instead (see gguf_config).
_IN_CONFIG = frozenset({"rope_freqs.weight"})
_BLOCKS = "gguf:"
_SLAB_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A range of a file with numbers in row-major order; dtype is perhaps 'gguf:Q4_1'."""

    file: int
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One tensor to make: of which parts of the files, and what to do with them.

    shape: the one that comes out. heads: number of heads whose rows are interleaved for
    llama.cpp's rope, 0 where they are not. change: None where there is one part, which has the
    tensor's own numbers.
    """

    name: str
    parts: tuple[Part, ...]
    target: str
    shape: tuple[int, ...]
    heads: int = 0
    transpose: bool = False
    change: Change | None = None

    @property
    def output_bytes(self) -> int:
        """Bytes of the tensor that comes out."""
        if self.target not in FLOATS:
            return sum(part.size_bytes for part in self.parts)
        return prod(self.shape) * int(NUMPY_TYPES[self.target]().itemsize)

    @property
    def is_stored(self) -> bool:
        """Return whether the tensor is in a file as it is, but for the order of heads' rows."""
        return self.change is None and not self.transpose

    def convert(self, raw: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Return the tensor made of the parts' bytes; bfloat16 comes as uint16."""
        change = self.change or Change()
        target = "float32" if change.compute else self.target
        parts = [
            self._decode(bytes_, part, target) for bytes_, part in zip(raw, self.parts, strict=True)
        ]
        values = change.arrange(parts) if change.arrange else parts[0]
        if change.compute:
            values = cast_float32(change.compute(values), target=self.target, name=self.name)
        if self.transpose:
            values = values.T
        return np.ascontiguousarray(values.reshape(self.shape))

    @property
    def rearranged(self) -> str:
        """Return the dtype of what `rearrange` makes: blocks, where whole rows of them move.

        Where columns do, they become bfloat16: a few thousandths are less than blocks have lost.
        """
        stored, change = {part.dtype for part in self.parts}, self.change
        if not self.parts[0].dtype.startswith(_BLOCKS):
            return self.target
        moves_rows = change is not None and not change.compute and not change.axis
        return self.parts[0].dtype if moves_rows and len(stored) == 1 else "bfloat16"

    @property
    def rearranged_bytes(self) -> int:
        """Bytes of what `rearrange` makes."""
        if self.rearranged.startswith(_BLOCKS):
            return sum(part.size_bytes for part in self.parts)
        return replace(self, target=self.rearranged).output_bytes

    def rearrange(self, raw: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Return the tensor, as it is computed with: see `rearranged`."""
        if not self.rearranged.startswith(_BLOCKS):
            return replace(self, target=self.rearranged).convert(raw)
        assert self.change is not None, "what is stored as it is used is read from its file"
        assert self.change.arrange is not None, "a change arranges or computes"
        rows = [
            bytes_.reshape(prod(part.shape[:-1]), -1)
            for bytes_, part in zip(raw, self.parts, strict=True)
        ]
        return np.ascontiguousarray(self.change.arrange(rows))

    def _decode(self, raw: NDArray[np.uint8], part: Part, target: str) -> NDArray[Any]:
        if self.heads:
            raw = _undo_interleaving(raw.reshape(part.shape[0], -1), self.heads).reshape(-1)
        if part.dtype.startswith(_BLOCKS):
            values = self._dequantise(raw.reshape(prod(part.shape[:-1]), -1), part, target)
        elif part.dtype in FLOATS:
            values = cast(raw, source=part.dtype, target=target, name=self.name)
        else:
            values = raw.view(np.dtype(part.dtype))
        return values.reshape(part.shape)

    def _dequantise(self, blocks: NDArray[np.uint8], part: Part, target: str) -> NDArray[Any]:
        """Return numbers for rows of blocks, a slab at a time: what is in between stays small."""
        rows, columns = len(blocks), part.shape[-1]
        values = np.empty((rows, columns), NUMPY_TYPES[target])
        step = max(_SLAB_ELEMENTS // columns, 1)
        for start in range(0, rows, step):
            slab = _dequantise(blocks[start : start + step], part.dtype, self.name)
            values[start : start + step] = cast_float32(slab, target=target, name=self.name)
        return values


def plan_conversions(
    checkpoint: Checkpoint, architecture: Architecture, metadata: GgufMetadata, *, dtype: str
) -> list[Conversion]:
    """Plan every tensor, in the file's order; raise InvalidCheckpointError for an unknown one.

    dtype 'auto' keeps float tensors as they are and makes blocks float32, which is exact.
    """
    planner = _Planner(
        checkpoint=checkpoint,
        architecture=architecture,
        heads=_heads(architecture, metadata),
        changes=find_changes(architecture.model_type, metadata),
        layers=layer_count(metadata),
        dtype=dtype,
    )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    checkpoint: Checkpoint
    architecture: Architecture
    heads: dict[str, int]
    changes: Mapping[str, Change]
    layers: int
    dtype: str

    def plan(self, tensor: Tensor) -> Iterator[Conversion]:
        """Plan what comes out of one GGUF tensor: itself, or one tensor per expert.

        Nothing comes of a tensor that another one is joined with, and of layers that only guess.
        """
        renamed = self.architecture.rename(tensor.name, layers=self.layers)
        if renamed is None:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: {self.architecture.class_name} has no place for the "
                f"tensor {tensor.name!r}, so the file cannot be converted"
            )
        if renamed.unused:
            return
        joined = self._joined(tensor, renamed)
        for one in joined:
            self._require_elements(one)
        if renamed.expert:
            yield from self._plan_experts(tensor, renamed)
            return
        change = self.changes.get(renamed.stem)
        if change is not None:
            self._require_fitting(joined, change)
        yield Conversion(
            name=renamed.name,
            parts=tuple(self._part(one) for one in joined),
            target=self._target(tensor.dtype),
            shape=self._shape(joined, renamed),
            heads=self._heads_of(tensor, renamed),
            transpose=self._transposes(tensor, renamed),
            change=change if change is not None and (change.arrange or change.compute) else None,
        )

    def _plan_experts(self, tensor: Tensor, renamed: Renamed) -> Iterator[Conversion]:
        whole = self._part(tensor)
        size_bytes = whole.size_bytes // tensor.shape[0]
        for expert in range(tensor.shape[0]):
            part = replace(
                whole,
                offset=whole.offset + expert * size_bytes,
                size_bytes=size_bytes,
                shape=tensor.shape[1:],
            )
            yield Conversion(
                name=renamed.name.format(expert),
                parts=(part,),
                target=self._target(tensor.dtype),
                shape=part.shape,
            )

    def _joined(self, tensor: Tensor, renamed: Renamed) -> list[Tensor]:
        """Return the tensors of the file that make one."""
        other = self.architecture.joined.get(renamed.stem)
        if other is None:
            return [tensor]
        name = tensor.name.replace(renamed.stem, other)
        if name not in self.checkpoint.tensors:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: the tensor {name} is missing, which belongs to "
                f"{tensor.name}"
            )
        return [tensor, self.checkpoint.tensors[name]]

    def _part(self, tensor: Tensor) -> Part:
        extent = self.checkpoint.extents[tensor.extent]
        return Part(
            file=extent.file,
            offset=extent.offset,
            size_bytes=extent.size_bytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
        )

    def _require_elements(self, tensor: Tensor) -> None:
        if 0 in tensor.shape:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: the tensor {tensor.name!r} has no elements "
                f"(shape {tensor.shape}), so the file cannot be converted"
            )

    def _require_fitting(self, tensors: Sequence[Tensor], change: Change) -> None:
        """Raise InvalidCheckpointError for what the file's heads cannot have."""
        if change.compute and self._target(tensors[0].dtype) not in FLOATS:
            raise InvalidCheckpointError(
                f"{self.checkpoint.path}: the tensor {tensors[0].name} is {tensors[0].dtype}, and "
                f"one of {', '.join(FLOATS)} was expected"
            )
        for tensor, length in zip(tensors, change.lengths, strict=False):
            found = tensor.shape[change.axis] if change.axis < len(tensor.shape) else 0
            if found != length or tensor.shape[1:] != tensors[0].shape[1:]:
                raise InvalidCheckpointError(
                    f"{self.checkpoint.path}: the tensor {tensor.name} has the shape "
                    f"{tensor.shape}, and {length} in dimension {change.axis} was expected"
                )

    def _shape(self, tensors: Sequence[Tensor], renamed: Renamed) -> tuple[int, ...]:
        tensor = tensors[0]
        if renamed.stem in self.architecture.unsqueezed:
            return tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
        if renamed.stem in self.architecture.convolutions:
            return (tensor.shape[0], 1, tensor.shape[-1])
        if len(tensors) > 1:
            return (sum(one.shape[0] for one in tensors), *tensor.shape[1:])
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
