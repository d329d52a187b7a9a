"""Tensors over the memory of a load: typed, strided views that keep it alive.

One typed base per arena and dtype, then one as_strided per tensor: about 2 us each, so 20,000
tensors take 40 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.torch.devices import torch_device
from sllm_store.torch.dtypes import dtype_named

if TYPE_CHECKING:
    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.plan import PlacedTensor

_BLOCKS = "gguf:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A loaded checkpoint as tensors: the state dict, and the buffers that are not part of it."""

    tensors: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def view_tensors(loaded: Loaded) -> Views:
    """Return a tensor for each tensor and alias of a load; no bytes are copied.

    GGUF blocks are the exception: they become float32 tensors on the device of their arena.
    """
    bases = _Bases(loaded)
    tensors: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    for placed in loaded.tensors:
        (buffers if placed.buffer else tensors)[placed.name] = bases.view(placed)
    for alias, name in loaded.aliases.items():
        if alias in tensors or alias in buffers:
            continue  # It is on another device than its tensor, so it has a place of its own.
        if name in tensors:
            tensors[alias] = tensors[name]
        elif name in buffers:
            buffers[alias] = buffers[name]
        else:
            raise InvalidCheckpointError(
                f"{loaded.directory}: {alias!r} is an alias of {name!r}, which is not there"
            )
    return Views(tensors=tensors, buffers=buffers)


class _Bases:
    """The arenas of one load, as tensors of each dtype in use."""

    def __init__(self, loaded: Loaded) -> None:
        self._devices = [torch_device(name) for name in loaded.devices]
        self._bytes = [None if arena is None else from_dlpack(arena) for arena in loaded.arenas]
        self._typed: dict[tuple[int, str], torch.Tensor] = {}

    def view(self, placed: PlacedTensor) -> torch.Tensor:
        if placed.dtype.startswith(_BLOCKS):
            return self._dequantize(placed)
        base = self._typed.get((placed.arena, placed.dtype))
        if base is None:
            base = self._base(placed.arena, placed.dtype)
        offset, rest = divmod(placed.offset_bytes, base.element_size())
        assert rest == 0, f"{placed.name} is not aligned to its dtype"
        return base.as_strided(placed.shape, placed.stride, offset)

    def _base(self, arena: int, dtype: str) -> torch.Tensor:
        raw = self._bytes[arena]
        if raw is None:  # Only empty tensors are in an empty arena.
            base = torch.empty(0, dtype=dtype_named(dtype), device=self._devices[arena])
        else:
            base = raw[: raw.numel() // _WIDEST * _WIDEST].view(dtype_named(dtype))
        self._typed[arena, dtype] = base
        return base

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
