"""Tensors over the memory of a load: typed, strided views that keep it alive.

One typed base per arena and dtype, then one as_strided per tensor: 1 to 2 us each, so 20,000
tensors take 20 to 40 ms, in which their bytes can still be on the way.
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
    from collections.abc import Callable

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
    tensors: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    bases = _Bases(placed)
    typed = bases.typed
    with no_collection():
        for tensor in placed.tensors:
            name, dtype, shape, stride, arena, offset_bytes, is_buffer = tensor
            found = typed.get((arena, dtype))
            if found is None:
                view = bases.view(tensor)
            else:
                as_strided, item_bytes = found
                assert offset_bytes % item_bytes == 0, f"{name} is not aligned to its dtype"
                view = as_strided(shape, stride, offset_bytes // item_bytes)
            (buffers if is_buffer else tensors)[name] = view
    _add_aliases(placed, tensors, buffers)
    return Views(tensors=tensors, buffers=buffers)


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
    """The arenas of one load, as tensors of each dtype in use.

    `typed` has the method that makes views of one, and its element size, by arena and dtype.
    """

    def __init__(self, placed: Placed) -> None:
        self._devices = [torch_device(name) for name in placed.devices]
        self._bytes = [None if arena is None else from_dlpack(arena) for arena in placed.arenas]
        self.typed: dict[tuple[int, str], tuple[Callable[..., torch.Tensor], int]] = {}

    def view(self, placed: PlacedTensor) -> torch.Tensor:
        """Return the first view of its kind of base, or a tensor of blocks, dequantised."""
        if placed.dtype.startswith(_BLOCKS):
            return self._dequantize(placed)
        base = self._base(placed.arena, placed.dtype)
        item_bytes = base.element_size()
        self.typed[placed.arena, placed.dtype] = base.as_strided, item_bytes
        assert placed.offset_bytes % item_bytes == 0, f"{placed.name} is not aligned to its dtype"
        return base.as_strided(placed.shape, placed.stride, placed.offset_bytes // item_bytes)

    def _base(self, arena: int, dtype: str) -> torch.Tensor:
        raw = self._bytes[arena]
        if raw is None:  # Only empty tensors are in an empty arena.
            return torch.empty(0, dtype=dtype_named(dtype), device=self._devices[arena])
        return raw[: raw.numel() // _WIDEST * _WIDEST].view(dtype_named(dtype))

    def _dequantize(self, placed: PlacedTensor) -> torch.Tensor:
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
