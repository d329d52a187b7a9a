"""The tensors of a load on the wire, column by column: a message for each would cost more than it.

Tens of thousands of tensors have few kinds, so each kind is told once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.plan import PlacedTensor
from sllm_store.proto import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence


def to_columns(tensors: Sequence[PlacedTensor]) -> Any:
    """Return the message that from_columns reads."""
    kinds: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
    return pb.Tensors(
        names=[tensor.name for tensor in tensors],
        kind=[
            kinds.setdefault((dtype, shape, stride), len(kinds))
            for _, dtype, shape, stride, _, _, _ in tensors
        ],
        kinds=[
            pb.Kind(
                dtype=dtype,
                shape=shape,
                stride=() if stride == contiguous_stride(shape) else stride,
            )
            for dtype, shape, stride in kinds
        ],
        arena=[tensor.arena for tensor in tensors],
        offset_bytes=[tensor.offset_bytes for tensor in tensors],
        buffers=[number for number, tensor in enumerate(tensors) if tensor.buffer],
    )


def from_columns(message: Any) -> tuple[PlacedTensor, ...]:
    """Return the tensors of a message, in their order; ValueError if its columns do not agree."""
    kinds = []
    for kind in message.kinds:
        shape = tuple(kind.shape)
        kinds.append((kind.dtype, shape, tuple(kind.stride) or contiguous_stride(shape)))
    is_buffer = bytearray(len(message.names))
    for number in message.buffers:
        is_buffer[number] = True
    columns = zip(
        message.names,
        map(kinds.__getitem__, message.kind),
        message.arena,
        message.offset_bytes,
        map(bool, is_buffer),
        strict=True,
    )
    return tuple(
        [
            PlacedTensor(name, dtype, shape, stride, arena, offset_bytes, buffer)
            for name, (dtype, shape, stride), arena, offset_bytes, buffer in columns
        ]
    )
