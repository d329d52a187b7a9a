"""Tensors over the memory of a load: typed, strided views that keep it alive.

One strided view for each row of tensors that are alike, then an index into it per tensor: 1 to 2 us
each, so 20,000 tensors take 20 to 40 ms, in which their bytes can still be on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.interpreter import no_collection
from sllm_store.torch.devices import torch_device
from sllm_store.torch.dtypes import dtype_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm_store.checkpoint.loaded import Placed
    from sllm_store.checkpoint.plan import PlacedTensor

_BLOCKS = "gguf:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A loaded checkpoint as tensors: the state dict, and the buffers that are not part of it."""

    tensors: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def needs_bytes(placed: Placed) -> bool:
    """Whether views can only be made once the bytes are there, because they are dequantised."""
    return any(tensor.dtype.startswith(_BLOCKS) for tensor in placed.tensors)


def view_tensors(placed: Placed) -> Views:
    """Return a tensor for each tensor and alias of a load; no bytes are copied.

    GGUF blocks are the exception: they become float32 tensors on the device of their arena.
    """
    with no_collection():
        bases = _Bases(placed)
        views: list[torch.Tensor | None] = [None] * len(placed.tensors)
        for (arena, dtype, shape, stride), members in _by_kind(placed.tensors).items():
            if dtype.startswith(_BLOCKS):
                for _, number in members:
                    views[number] = bases.dequantize(placed.tensors[number])
            else:
                members.sort()
                like = _like(bases.typed(arena, dtype), shape, stride, [at for at, _ in members])
                for (_, number), view in zip(members, like, strict=True):
                    views[number] = view
        tensors: dict[str, torch.Tensor] = {}
        buffers: dict[str, torch.Tensor] = {}
        for tensor, made in zip(placed.tensors, views, strict=True):
            assert made is not None
            (buffers if tensor.buffer else tensors)[tensor.name] = made
    _add_aliases(placed, tensors, buffers)
    return Views(tensors=tensors, buffers=buffers)


_Kind = tuple[int, str, tuple[int, ...], tuple[int, ...]]  # Arena, dtype, shape, stride.


def _by_kind(tensors: Sequence[PlacedTensor]) -> dict[_Kind, list[tuple[int, int]]]:
    """Group the offsets and numbers of tensors by arena and kind."""
    groups: dict[_Kind, list[tuple[int, int]]] = {}
    for number, (_, dtype, shape, stride, arena, offset_bytes, _) in enumerate(tensors):
        groups.setdefault((arena, dtype, shape, stride), []).append((offset_bytes, number))
    return groups


def _like(
    base: torch.Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offsets_bytes: Sequence[int],
) -> Iterator[torch.Tensor]:
    """Yield views of one shape and stride that start at ascending offsets.

    Where they lie at equal distances, a view of one dimension more spans them all, and each is an
    index into it: that keeps the interpreter lock, which as_strided lets go of for every view.
    """
    item_bytes = base.element_size()
    assert not any(offset % item_bytes for offset in offsets_bytes), "not aligned to its dtype"
    starts = [offset // item_bytes for offset in offsets_bytes]
    first = 0
    while first < len(starts):
        step = starts[first + 1] - starts[first] if first + 1 < len(starts) else 0
        last = first + 1
        while last < len(starts) and starts[last] - starts[last - 1] == step:
            last += 1
        rows = base.as_strided((last - first, *shape), (step, *stride), starts[first])
        yield from map(rows.__getitem__, range(last - first))
        first = last


def _add_aliases(
    placed: Placed, tensors: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]
) -> None:
    for alias, name in placed.aliases.items():
        if alias in tensors or alias in buffers:
            continue  # It is on another device than its tensor, so it has a place of its own.
        if name in tensors:
            tensors[alias] = tensors[name]
        elif name in buffers:
            buffers[alias] = buffers[name]
        else:
            raise InvalidCheckpointError(
                f"{placed.directory}: {alias!r} is an alias of {name!r}, which is not there"
            )


class _Bases:
    """The arenas of one load, as tensors of each dtype in use."""

    def __init__(self, placed: Placed) -> None:
        self._devices = [torch_device(name) for name in placed.devices]
        self._bytes = [None if arena is None else from_dlpack(arena) for arena in placed.arenas]

    def typed(self, arena: int, dtype: str) -> torch.Tensor:
        """Return all of an arena, as elements of one dtype."""
        raw = self._bytes[arena]
        if raw is None:  # Only empty tensors are in an empty arena.
            return torch.empty(0, dtype=dtype_named(dtype), device=self._devices[arena])
        return raw[: raw.numel() // _WIDEST * _WIDEST].view(dtype_named(dtype))

    def dequantize(self, placed: PlacedTensor) -> torch.Tensor:
        """Return the values of GGUF blocks."""
        kind = placed.dtype.removeprefix(_BLOCKS)
        raw = self._bytes[placed.arena]
        device = self._devices[placed.arena]
        if raw is None or 0 in placed.shape:
            return torch.empty(placed.shape, dtype=torch.float32, device=device)
        end = placed.offset_bytes + contiguous_bytes(placed.dtype, placed.shape)
        blocks = raw[placed.offset_bytes : end].cpu().numpy()
        row_bytes = contiguous_bytes(placed.dtype, placed.shape[-1:])
        values = _dequantize(blocks.reshape(-1, row_bytes), kind, placed.name)
        return torch.from_numpy(values).reshape(placed.shape).to(device)


_WIDEST = 16  # Bytes of a complex128; arenas end at a multiple of it.


def _dequantize(rows: Any, kind: str, name: str) -> Any:
    """Return the float32 values of rows of blocks, as arrays."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise InvalidRequestError(
            f"tensor {name!r} holds GGUF blocks: pip install 'serverless-llm[gguf]' to read them"
        ) from error
    try:
        return quants.dequantize(rows, GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise InvalidRequestError(
            f"tensor {name!r} is {kind}, which the gguf package cannot dequantise"
        ) from error
