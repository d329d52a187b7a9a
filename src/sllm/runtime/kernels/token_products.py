"""Products of one token with nibbles, whose weights are on their way before the token is there.

Bound by reading the planes, in a chain too: see `device/token_product.cu`. What makes x a norm of
what it was, or of a sum, is part of the product, and so is what makes gates and the rest one.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.launches import processors_of
from sllm.runtime.kernels.plane_maps import (
    STAGE_BYTES,
    STAGE_GROUPS,
    TILE_COLUMNS,
    TILE_ROWS,
    PlaneMaps,
)
from sllm.runtime.kernels.programs import Grid, can_compile, find_program

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.kernels.operands import Norm
    from sllm.runtime.kernels.programs import Program

_log = logging.getLogger(__name__)

NUMBER_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Of norms and biases, as `device/token_numbers.cuh` calls them."""
_SLOWER = "steps of one request are computed by slower kernels"
_WITH_TENSOR_MAPS = (9, 0)
_THREADS = (16 + 1) * 32  # Warps that multiply, and one that has weights copied.
_STAGES = (8, 4)  # Of the ring: whole fours, so that each team of warps has its own.
_TEAM = 4
_RECORD_BYTES, _LINE = 80, 128  # Of 32 columns in fixed point.
_STATIC_BYTES = 1024  # What a block has besides: barriers, and sums of squares.


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductShape:
    """What a product is compiled for: rows and columns of its matrix, and what belongs to it.

    normed: x is normalised first. gated: the first half of the rows are gates of the other.
    biased: a bias is added. dtype: of x; scales: of what nibbles are multiplied by; vectors: of
    norms and biases.
    """

    rows: int
    columns: int
    normed: bool
    gated: bool
    biased: bool
    dtype: torch.dtype
    scales: torch.dtype
    vectors: torch.dtype

    @property
    def out(self) -> int:
        """How many numbers come out."""
        return self.rows // 2 if self.gated else self.rows

    def stages(self, blocks: int, most_bytes: int) -> int:
        """Return the stages of a ring that so many blocks have room for; 0 if there is none."""
        return next((n for n in _STAGES if self.shared_bytes(n, blocks) <= most_bytes), 0)

    def shared_bytes(self, stages: int, blocks: int) -> int:
        """Return what a block has in shared memory: a ring, x in fixed point, and sums."""
        groups = self.columns // 32
        records = -(-groups * _RECORD_BYTES // _LINE) * _LINE
        tiles = -(-self.out // TILE_ROWS // blocks) * (self.rows // self.out)
        sums = tiles * -(-groups // STAGE_GROUPS) * _TEAM * TILE_ROWS * 4
        return stages * STAGE_BYTES + records + sums

    def constants(self, stages: int, *, chained: bool) -> dict[str, int]:
        """Return what the kernel is compiled with."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "STAGES": stages,
            "NORMED": int(self.normed),
            "GATED": int(self.gated),
            "BIASED": int(self.biased),
            "SCALE_BF16": int(self.scales == torch.bfloat16),
            **number_constants(self.dtype, self.vectors, chained=chained),
        }

    def fits(self, device: torch.device) -> bool:
        """Whether there is a kernel for it that the device has room for."""
        return (
            self.out % TILE_ROWS == self.columns % TILE_COLUMNS == 0
            and {self.dtype, self.scales} <= {torch.bfloat16, torch.float16}
            and self.vectors in NUMBER_KINDS
            and self.stages(processors_of(device), room_on(device)) > 0
        )


def number_constants(dtype: torch.dtype, vectors: torch.dtype, *, chained: bool) -> dict[str, int]:
    """Return what each of a token's kernels is compiled with: see `device/token_numbers.cuh`."""
    return {
        "X_BF16": int(dtype == torch.bfloat16),
        "NORM_KIND": NUMBER_KINDS[vectors],
        "CHAINED": int(chained),
    }


def room_on(device: torch.device) -> int:
    """Return the bytes of shared memory that a block may ask for."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin) - _STATIC_BYTES  # type: ignore[attr-defined]


class _Argument(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("maps", "x", "added", "norm", "total", "bias", "out")
        ),
        ("epsilon", ctypes.c_float),
    ]


@cache
def can_multiply_tokens(device: torch.device) -> bool:
    """Return whether a device can, and what compiles for it is here and does."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _WITH_TENSOR_MAPS:
        return False
    if not can_compile():
        _log.warning("%s: pip install cuda-bindings brings what compiles the others", _SLOWER)
        return False
    smallest = ProductShape(
        rows=TILE_ROWS,
        columns=TILE_COLUMNS,
        normed=True,
        gated=False,
        biased=False,
        dtype=torch.bfloat16,
        scales=torch.float16,
        vectors=torch.float32,
    )
    try:
        find_program("token_product", smallest.constants(_STAGES[-1], chained=False), device)
    except RuntimeError as error:
        _log.warning("%s: %s", _SLOWER, error)
        return False
    return True


class TokenProducts:
    """Products of any shape on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._maps = PlaneMaps()
        self._programs: dict[tuple[ProductShape, bool], tuple[Program, Grid]] = {}

    def multiply(
        self, x: torch.Tensor, planes: Planes, *, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return x, (1, columns), times the transpose: (1, rows)."""
        shape = shape_of(x, planes, bias=bias)
        return self._launch(shape, planes, x, bias=bias)[1]

    def multiply_normed(
        self,
        state: tuple[torch.Tensor, torch.Tensor | None],
        norm: Norm,
        planes: Planes,
        *,
        bias: torch.Tensor | None = None,
        gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a state comes to, and that, normalised, times the transpose.

        state: x, (1, columns), and what is to be added to it. gated: of (1, rows) found, silu of
        the first half times the other half comes out.
        """
        x, added = state
        assert norm.offset == 0
        shape = shape_of(x, planes, norm=norm.weight, bias=bias, gated=gated)
        return self._launch(shape, planes, x, added=added, norm=norm, bias=bias)

    def _launch(
        self,
        shape: ProductShape,
        planes: Planes,
        x: torch.Tensor,
        *,
        added: torch.Tensor | None = None,
        norm: Norm | None = None,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.shape == (1, shape.columns)
        given = (x, added, None if norm is None else norm.weight, bias)
        assert all(one is None or one.is_contiguous() for one in given)
        out = x.new_empty((1, shape.out))
        total = x if added is None else torch.empty_like(x)
        argument = _Argument(
            maps=self._maps.find(planes).data_ptr(),
            x=x.data_ptr(),
            added=None if added is None else added.data_ptr(),
            norm=None if norm is None else norm.weight.data_ptr(),
            total=total.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            epsilon=0.0 if norm is None else norm.epsilon,
        )
        chained = chain_options()["chained"]
        program, grid = self._program(shape, chained=chained)
        program.launch(grid, argument, chained=chained)
        return total, out

    def _program(self, shape: ProductShape, *, chained: bool) -> tuple[Program, Grid]:
        found = self._programs.get((shape, chained))
        if found is not None:
            return found
        blocks = processors_of(self._device)
        stages = shape.stages(blocks, room_on(self._device))
        defined = shape.constants(stages, chained=chained)
        grid = Grid(
            blocks=(blocks, 1), threads=_THREADS, shared_bytes=shape.shared_bytes(stages, blocks)
        )
        found = find_program("token_product", defined, self._device), grid
        self._programs[shape, chained] = found
        return found


def shape_of(
    x: torch.Tensor,
    planes: Planes,
    *,
    norm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    gated: bool = False,
) -> ProductShape:
    """Return the shape of a product. norm, bias: its vectors, of one dtype."""
    rows, columns = planes.shape
    vectors = {vector.dtype for vector in (norm, bias) if vector is not None}
    assert len(vectors) <= 1
    return ProductShape(
        rows=rows,
        columns=columns,
        normed=norm is not None,
        gated=gated,
        biased=bias is not None,
        dtype=x.dtype,
        scales=planes.scales.dtype,
        vectors=next(iter(vectors), torch.float32),
    )
