"""The tensors of a load on the wire, column by column: a message for each would cost more than it.

Tens of thousands of tensors have few kinds, so each kind is told once.
"""

from __future__ import annotations

from typing import Any

from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.plan import Kind, PlacedTensors
from sllm_store.proto import storage_pb2 as pb


def to_columns(tensors: PlacedTensors) -> Any:
    """Return the message that from_columns reads."""
    return pb.Tensors(
        names=tensors.names,
        kind=tensors.kind,
        kinds=[
            pb.Kind(
                dtype=dtype,
                shape=shape,
                stride=() if stride == contiguous_stride(shape) else stride,
            )
            for dtype, shape, stride in tensors.kinds
        ],
        arena=tensors.arena,
        offset_bytes=tensors.offset_bytes,
        buffers=sorted(tensors.buffers),
    )


def from_columns(message: Any) -> PlacedTensors:
    """Return the tensors of a message, in their order; ValueError if its columns do not agree."""
    kinds = []
    for kind in message.kinds:
        shape = tuple(kind.shape)
        kinds.append(Kind(kind.dtype, shape, tuple(kind.stride) or contiguous_stride(shape)))
    return PlacedTensors(
        names=list(message.names),
        kinds=tuple(kinds),
        kind=list(message.kind),
        arena=list(message.arena),
        offset_bytes=list(message.offset_bytes),
        buffers=frozenset(message.buffers),
    )
