"""Tensors over the memory of a load: typed, strided views that keep it alive.

A call of PyTorch's for each of 20,000 tensors takes 20 to 40 ms, and lets go of the interpreter
lock each time. A few calls make all of them: tensors that are alike and lie at equal distances are
rows of one view, which is taken apart at once, and the others are cut out of their arena at once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, groupby
from math import gcd, prod
from operator import sub
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.interpreter import no_collection
from sllm_store.torch.devices import torch_device
from sllm_store.torch.dtypes import dtype_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm_store.checkpoint.loaded import Placed
    from sllm_store.checkpoint.plan import PlacedTensor, PlacedTensors

_BLOCKS = "gguf:"
_ROWS_MIN = 8  # Fewer are no quicker as rows.


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A loaded checkpoint as tensors: the state dict, and the buffers that are not part of it."""

    tensors: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def needs_bytes(placed: Placed) -> bool:
    """Whether views can only be made once the bytes are there, because they are dequantised."""
    return any(kind.dtype.startswith(_BLOCKS) for kind in placed.tensors.kinds)


def view_tensors(placed: Placed) -> Views:
    """Return a tensor for each tensor and alias of a load; no bytes are copied.

    GGUF blocks are the exception: they become float32 tensors on the device of their arena.
    """
    columns = placed.tensors
    views: dict[int, torch.Tensor] = {}
    with no_collection():
        bases = _Bases(placed)
        for (arena, dtype), kinds in _by_dtype(columns).items():
            if dtype.startswith(_BLOCKS):
                for number in chain.from_iterable(kinds.values()):
                    views[number] = bases.dequantize(columns[number])
            else:
                views |= _Cutter(bases.typed(arena, dtype), columns).cut(kinds)
        made = [views[number] for number in range(len(columns))]
        tensors = dict(zip(columns.names, made, strict=True))
        buffers = {columns.names[number]: made[number] for number in sorted(columns.buffers)}
    for name in buffers:
        del tensors[name]
    _add_aliases(placed, tensors, buffers)
    return Views(tensors=tensors, buffers=buffers)


def _by_dtype(columns: PlacedTensors) -> dict[tuple[int, str], dict[int, list[int]]]:
    """Return the numbers of tensors by arena and dtype, then by kind; each ascends by offset."""
    alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number in sorted(range(len(columns)), key=columns.offset_bytes.__getitem__):
        alike[columns.arena[number], columns.kind[number]].append(number)
    groups: defaultdict[tuple[int, str], dict[int, list[int]]] = defaultdict(dict)
    for (arena, kind), numbers in alike.items():
        groups[arena, columns.kinds[kind].dtype][kind] = numbers
    return groups


class _Cutter:
    """Makes views of one dtype in one arena.

    They are cut below autograd, which does not know them as parts of one tensor then: each is by
    itself, and may be written in place, although many came out of one call.
    """

    def __init__(self, base: torch.Tensor, columns: PlacedTensors) -> None:
        """`base` is all of the arena."""
        self._base = base
        self._columns = columns
        self._views: dict[int, torch.Tensor] = {}
        self._alone: list[tuple[int, int, int]] = []  # Start, number, and kind of contiguous ones.

    def cut(self, kinds: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Return the views by their numbers, given those of each kind, ascending by offset."""
        item_bytes = self._base.element_size()
        with torch._C._AutoDispatchBelowADInplaceOrView():  # noqa: SLF001 - nothing public does it
            for kind, numbers in kinds.items():
                offsets = [self._columns.offset_bytes[number] for number in numbers]
                assert gcd(*offsets) % item_bytes == 0, "a tensor is not aligned to its dtype"
                starts = [offset // item_bytes for offset in offsets]
                for first, last in _rows(starts):
                    self._take(kind, numbers[first:last], starts[first:last])
            self._cut_alone()
        return self._views

    def _take(self, kind: int, numbers: list[int], starts: list[int]) -> None:
        """View tensors that are alike, at equal distances; a few wait for others like them."""
        _, shape, stride = self._columns.kinds[kind]
        if len(starts) < _ROWS_MIN and 0 not in shape and stride == contiguous_stride(shape):
            self._alone += [(start, n, kind) for start, n in zip(starts, numbers, strict=True)]
            return
        step = starts[1] - starts[0] if len(starts) > 1 else 0
        rows = self._base.as_strided((len(starts), *shape), (step, *stride), starts[0])
        self._views.update(zip(numbers, rows.unbind(), strict=True))

    def _cut_alone(self) -> None:
        """Cut what is between the first and the last of those that wait, and keep what is asked."""
        like: list[torch.Tensor] = []
        numbers: list[int | None] = []
        templates: dict[int, torch.Tensor] = {}
        alone = sorted(self._alone)
        first = end = alone[0][0] if alone else 0
        for start, number, kind in alone:
            _, shape, stride = self._columns.kinds[kind]
            if start < end:  # It shares memory with the one before.
                self._views[number] = self._base.as_strided(shape, stride, start)
                continue
            if start > end:
                like.append(self._shaped((start - end,)))
                numbers.append(None)
            if kind not in templates:
                templates[kind] = self._shaped(shape)
            like.append(templates[kind])
            numbers.append(number)
            end = start + prod(shape)
        made = torch._C._nn.unflatten_dense_tensors(self._base[first:end], like)  # noqa: SLF001
        for asked, view in zip(numbers, made, strict=True):
            if asked is not None:
                self._views[asked] = view

    def _shaped(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return something of a shape, which takes no memory."""
        return self._base.as_strided(shape, (0,) * len(shape), 0)


def _rows(starts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield where to part ascending starts, so that those of each part are at equal distances."""
    first = steps = 0
    for _, equal in groupby(map(sub, starts[1:], starts)):
        steps += len(list(equal))
        yield first, steps + 1
        first = steps + 1
    if first < len(starts):
        yield first, len(starts)


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
