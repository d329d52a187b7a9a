"""Images: how a group of tensors lies on a device, and how its stored bytes get there.

Floats stay as they are stored, but for those whose file has them where wide loads may not begin:
they move. Quantised matrices are laid out in planes by the device itself: blocks by a kernel,
others a few rows at a time, so that what that takes in between is bounded.
Planes of matrices that multiply the same x follow one another, so that they are planes of one.
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
from sllm.runtime.weights.joining import find_families
from sllm.runtime.weights.views import view_group
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sllm.runtime.kernels.layout import Format
    from sllm.runtime.quant.matrix import Matrix
    from sllm_store.groups.layout import GroupLayout

_ALIGNMENT = 256
_LOAD_BYTES = 16
_CHUNK_WEIGHTS = 1 << 25
_FLOATS = "floats"  # What an unquantised tensor is called among planes.
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
        self.size_bytes = 0
        self.is_stored = True
        shapes: dict[str, torch.Tensor | Planes] = {}
        for name, stored in tensors.items():
            is_float = isinstance(stored, torch.Tensor)
            self.is_stored = self.is_stored and (is_float or isinstance(stored, PlanarMatrix))
            shapes[name] = stored if isinstance(stored, torch.Tensor) else _planes(stored, _META)
        self._parts: dict[str, _Place | _Matrix] = {}
        for names in _neighbours(shapes):
            self._parts.update(self._place(names, [shapes[name] for name in names]))

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

    def _place(
        self, names: Sequence[str], shapes: Sequence[torch.Tensor | Planes]
    ) -> Iterator[tuple[str, _Place | _Matrix]]:
        """Yield where neighbours go; those of several planes are neighbours in each."""
        planes = [_tensors(shape) for shape in shapes]
        places = {key: self._place_rows([each[key] for each in planes]) for key in planes[0]}
        for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            own = {key: rows[index] for key, rows in places.items()}
            yield name, _Matrix(shape.format, own) if isinstance(shape, Planes) else own[_FLOATS]

    def _place_rows(self, tensors: Sequence[torch.Tensor]) -> list[_Place]:
        """Return places that follow one another."""
        found: list[_Place] = []
        for tensor in tensors:
            found.append(_Place(self.size_bytes, tuple(tensor.shape), tensor.dtype))
            self.size_bytes += tensor.nbytes
        self.size_bytes = align_up(self.size_bytes, _ALIGNMENT)
        return found


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


def _neighbours(shapes: Mapping[str, torch.Tensor | Planes]) -> Iterator[tuple[str, ...]]:
    """Yield all names, together those of matrices that can be joined."""
    joined: set[str] = set()
    for family in find_families(shapes):
        names = tuple(f"{name}.weight" for name in family)
        if _can_join([shapes[name] for name in names]):
            yield names
            joined.update(names)
    yield from ((name,) for name in shapes if name not in joined)


def _can_join(matrices: Sequence[torch.Tensor | Planes]) -> bool:
    """Return whether matrices are alike but for their rows, and each may begin after another."""
    kinds = {
        (
            matrix.format if isinstance(matrix, Planes) else None,
            *((key, plane.dtype, plane.shape[1:]) for key, plane in _tensors(matrix).items()),
        )
        for matrix in matrices
    }
    planes = (plane for matrix in matrices for plane in _tensors(matrix).values())
    return len(kinds) == 1 and not any(plane.nbytes % _LOAD_BYTES for plane in planes)


def _tensors(matrix: torch.Tensor | Planes) -> dict[str, torch.Tensor]:
    return matrix.tensors if isinstance(matrix, Planes) else {_FLOATS: matrix}


def _is_aligned(layout: GroupLayout) -> bool:
    """Return whether matrices begin where wide loads may: in a published file, any byte will do."""
    return not any(
        place % _LOAD_BYTES
        for tensor, place in zip(layout.tensors, layout.places, strict=True)
        if len(tensor.shape) > 1
    )


def _write_planes(target: Planes, stored: Matrix) -> None:
    if isinstance(stored, BlockMatrix) and stored.raw.device.type == "cuda":
        from sllm.runtime.kernels.block_laying import write_planes

        write_planes(target, stored.raw, type(stored).__name__)
        return
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
