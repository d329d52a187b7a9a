"""Plane maps: how asynchronous copies read the planes of a matrix of nibbles, tile by tile.

A tile is sixteen rows, of 64 groups of columns: words in eight lines of 128 bytes of each row, and
scales in one. See `device/token_product.cu`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.kernels.programs import checked

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

TILE_ROWS, TILE_COLUMNS = 16, 256
"""Of every matrix there are as many rows and columns, or a multiple."""
STAGE_GROUPS = 64
"""Of the columns of a tile that are copied at once."""
_LINE = 128
_GROUP_BYTES, _SCALE_BYTES, _WORD_BYTES = 16, 2, 4
STAGE_BYTES = TILE_ROWS * STAGE_GROUPS * (_GROUP_BYTES + _SCALE_BYTES)
"""What such a copy brings."""


def has_tiles(planes: Planes) -> bool:
    """Return whether planes are of Q4_0's kind, whole tiles, and aligned."""
    form, (rows, columns) = planes.format, planes.shape
    return (
        (form.bits, form.zero, form.scale_columns) == (4, 8, 32)
        and len(planes.tensors) == 2
        and rows % TILE_ROWS == columns % TILE_COLUMNS == 0
        and planes.scales.dtype in {torch.bfloat16, torch.float16}
        and all(plane.data_ptr() % _GROUP_BYTES == 0 for plane in planes.tensors.values())
        and all(plane.is_contiguous() for plane in planes.tensors.values())
    )


class PlaneMaps:
    """The maps of matrices, on their device; each is made once for a place in memory."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def find(self, planes: Planes) -> torch.Tensor:
        """Return the maps of a matrix, of its words and of its scales: (32,), int64.

        Whoever launches with them keeps them: they stay as long as these maps do.
        """
        places = planes.low.data_ptr(), planes.scales.data_ptr()
        key = (*places, *planes.shape)
        found = self._maps.get(key)
        if found is None:
            words = torch.tensor(_map_words(planes.low) + _map_scales(planes.scales))
            found = self._maps[key] = words.to(planes.low.device)
        return found


def _map_words(low: torch.Tensor) -> list[int]:
    """Return the map of words in lines, (lines, rows, words of a line)."""
    rows, groups, _ = low.shape
    row_bytes = groups * _GROUP_BYTES
    return _encode(
        low,
        "INT32",
        sizes=(_LINE // _WORD_BYTES, rows, row_bytes // _LINE),
        strides=(row_bytes, _LINE),
        box=(_LINE // _WORD_BYTES, TILE_ROWS, STAGE_GROUPS * _GROUP_BYTES // _LINE),
    )


def _map_scales(scales: torch.Tensor) -> list[int]:
    rows, groups = scales.shape
    return _encode(
        scales,
        "UINT16",
        sizes=(groups, rows),
        strides=(groups * _SCALE_BYTES,),
        box=(STAGE_GROUPS, TILE_ROWS),
    )


def _encode(
    plane: torch.Tensor,
    kind: str,
    *,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
) -> list[int]:
    """Return a map as the device reads it, sixteen words.

    sizes and box: elements, from the nearest neighbours on; strides: of all but those, in bytes.
    Lines are swizzled, and what is behind the end is zeros.
    """
    from cuda.bindings import driver

    large, small, rank = driver.cuuint64_t, driver.cuuint32_t, len(sizes)
    found: Any = checked(
        driver.cuTensorMapEncodeTiled(
            getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind}"),
            small(rank),
            plane.data_ptr(),
            [large(size) for size in sizes],
            [large(stride) for stride in strides],
            [small(size) for size in box],
            [small(1)] * rank,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return [_signed(int(word)) for word in found.opaque]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
