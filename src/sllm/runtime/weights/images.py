"""Images: how a group of tensors lies on a device, and how its stored bytes get there.

Floats stay as they are stored, but for those whose file has them where wide loads may not begin:
they move. Quantised matrices are laid out in planes, a few rows at a time, by
the device itself: that is quick there, and what it takes in between is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.layout import Planes
from sllm.runtime.quant.affine import AffineQ4
from sllm.runtime.quant.block_matrix import BlockMatrix
from sllm.runtime.quant.moving import move_matrix
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.views import view_group
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm.runtime.kernels.layout import Format
    from sllm.runtime.quant.matrix import Matrix
    from sllm_store.groups.layout import GroupLayout

_ALIGNMENT = 256
_LOAD_BYTES = 16
_CHUNK_WEIGHTS = 1 << 25
_META, _CPU = torch.device("meta"), torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is in an image."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, image: torch.Tensor) -> torch.Tensor:
        size_bytes = prod(self.shape) * self.dtype.itemsize
        return image[self.offset : self.offset + size_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A quantised matrix in an image, plane by plane."""

    format: Format
    planes: dict[str, _Place]

    def view(self, image: torch.Tensor) -> PlanarMatrix:
        planes = {name: place.view(image) for name, place in self.planes.items()}
        return PlanarMatrix(Planes(self.format, **planes))


class Image:
    """The layout of some tensors. `is_stored`: nothing is quantised otherwise than in planes."""

    def __init__(self, tensors: Mapping[str, torch.Tensor | Matrix]) -> None:
        """Plan where tensors go, which may be on the meta device."""
        self._parts: dict[str, _Place | _Matrix] = {}
        self.size_bytes = 0
        self.is_stored = True
        for name, stored in tensors.items():
            if isinstance(stored, torch.Tensor):
                self._parts[name] = self._place(stored)
                continue
            self.is_stored = self.is_stored and isinstance(stored, PlanarMatrix)
            planes = _planes(stored, _META)
            places = {key: self._place(plane) for key, plane in planes.tensors.items()}
            self._parts[name] = _Matrix(planes.format, places)

    def view(self, image: torch.Tensor) -> dict[str, torch.Tensor | Matrix]:
        """Return the tensors over an image; nothing is copied."""
        return {name: part.view(image) for name, part in self._parts.items()}

    def write(self, image: torch.Tensor, tensors: Mapping[str, torch.Tensor | Matrix]) -> None:
        """Lay tensors out in an image, on the device where both are."""
        for name, stored in tensors.items():
            part = self._parts[name]
            if isinstance(stored, torch.Tensor):
                assert isinstance(part, _Place), "a tensor stays one"
                part.view(image).copy_(stored)
            else:
                assert isinstance(part, _Matrix), "a matrix is laid out in planes"
                _write_planes(part.view(image).planes, stored)

    def _place(self, tensor: torch.Tensor) -> _Place:
        offset = self.size_bytes
        self.size_bytes = align_up(offset + tensor.nbytes, _ALIGNMENT)
        return _Place(offset, tuple(tensor.shape), tensor.dtype)


class GroupImage:
    """The layout of one group. `is_stored`: it is that of the group's stored bytes."""

    def __init__(self, layout: GroupLayout) -> None:
        self._layout = layout
        self.stored_bytes = layout.size_bytes
        nowhere = torch.empty(layout.size_bytes, dtype=torch.uint8, device=_META)
        self._image = Image(view_group(layout, nowhere))
        self.is_stored = self._image.is_stored and _is_aligned(layout)
        self.size_bytes = layout.size_bytes if self.is_stored else self._image.size_bytes

    def view(self, image: torch.Tensor) -> dict[str, torch.Tensor | Matrix]:
        """Return the group's tensors over an image; nothing is copied."""
        return view_group(self._layout, image) if self.is_stored else self._image.view(image)

    def write(self, image: torch.Tensor, raw: torch.Tensor) -> None:
        """Lay stored bytes out in an image, on the device where both are."""
        if self.is_stored:
            image[: len(raw)].copy_(raw)
            return
        self._image.write(image, view_group(self._layout, raw))


def _is_aligned(layout: GroupLayout) -> bool:
    """Return whether matrices begin where wide loads may: in a published file, any byte will do."""
    return not any(
        place % _LOAD_BYTES
        for tensor, place in zip(layout.tensors, layout.places, strict=True)
        if len(tensor.shape) > 1
    )


def _write_planes(target: Planes, stored: Matrix) -> None:
    rows, columns = stored.shape
    step = max(_CHUNK_WEIGHTS // columns, 1)
    for start in range(0, rows, step):
        some = _planes(stored.part(start, min(start + step, rows)), target.low.device)
        for name, plane in some.tensors.items():
            target.tensors[name][start : start + step].copy_(plane)


def _planes(matrix: Matrix, device: torch.device) -> Planes:
    if device == _META:
        return _planes_nowhere(matrix)
    moved = move_matrix(matrix, device)
    assert isinstance(moved, PlanarMatrix), "what is quantised moves in planes"
    return moved.planes


def _planes_nowhere(matrix: Matrix) -> Planes:
    """Return planes over memory that is not there, made like those of one row of zeros.

    Laying out such memory itself is seconds of PyTorch's Python for a model of many layers.
    """
    if isinstance(matrix, PlanarMatrix):
        row = matrix.planes
    elif isinstance(matrix, AffineQ4):
        row = _affine_row(*((tensor.shape[1], tensor.dtype) for tensor in matrix.tensors))
    else:
        assert isinstance(matrix, BlockMatrix), "what is quantised is in blocks or affine"
        row = _block_row(type(matrix), matrix.raw.shape[1])
    rows = matrix.shape[0]
    return row.map(
        lambda plane: torch.empty((rows, *plane.shape[1:]), dtype=plane.dtype, device=_META)
    )


@cache
def _block_row(scheme: type[BlockMatrix], row_bytes: int) -> Planes:
    return _planes(scheme(torch.zeros((1, row_bytes), dtype=torch.uint8)), _CPU)


@cache
def _affine_row(*tensors: tuple[int, torch.dtype]) -> Planes:
    return _planes(AffineQ4(*(torch.zeros((1, n), dtype=dtype) for n, dtype in tensors)), _CPU)
