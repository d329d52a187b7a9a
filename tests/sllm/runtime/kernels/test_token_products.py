"""What a token's product is compiled for, and what it has room for; a GPU's tests compute it."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.plane_maps import has_tiles
from sllm.runtime.kernels.token_products import ProductShape, shape_of
from tests.sllm.runtime.kernels.plane_cases import make_case

H200_BYTES, H200_PROCESSORS = 227 << 10, 132


def _shape(rows: int, columns: int, *, gated: bool = False) -> ProductShape:
    return ProductShape(
        rows=rows,
        columns=columns,
        normed=True,
        gated=gated,
        biased=False,
        dtype=torch.bfloat16,
        scales=torch.float16,
        vectors=torch.bfloat16,
    )


@pytest.mark.parametrize(
    ("rows", "columns", "stages"),
    [(6144, 4096, 8), (128256, 4096, 8), (4096, 14336, 8), (8192, 28672, 4), (16, 256, 8)],
)
def test_a_ring_has_as_many_stages_as_there_is_room_for_in_whole_fours(
    rows: int, columns: int, stages: int
) -> None:
    shape = _shape(rows, columns)
    found = shape.stages(H200_PROCESSORS, H200_BYTES - 1024)
    assert found == stages
    assert shape.shared_bytes(found, H200_PROCESSORS) <= H200_BYTES - 1024


def test_a_product_that_has_no_room_has_no_stages() -> None:
    assert _shape(4096, 14336).stages(H200_PROCESSORS, 99 << 10) == 0


def test_of_gates_and_the_rest_half_as_many_rows_come_out() -> None:
    assert _shape(28672, 4096, gated=True).out == 14336
    assert _shape(28672, 4096).out == 28672


def test_a_shape_says_what_belongs_to_the_product() -> None:
    planes = make_case("Q4_0").planes
    x = torch.zeros((1, planes.shape[1]), dtype=torch.bfloat16)
    norm, bias = torch.zeros(4), torch.zeros(5)
    plain = shape_of(x, planes)
    assert (plain.rows, plain.columns) == planes.shape
    assert [plain.normed, plain.gated, plain.biased] == [False] * 3
    whole = shape_of(x, planes, norm=norm, bias=bias, gated=True)
    assert whole.normed
    assert whole.gated
    assert whole.biased
    assert whole.vectors == torch.float32


@pytest.mark.parametrize("scheme", ["Q4_1", "Q8_0", "Q4_K"])
def test_matrices_of_other_kinds_have_no_tiles(scheme: str) -> None:
    assert not has_tiles(make_case(scheme).planes)


def test_matrices_have_tiles_if_they_are_whole_tiles() -> None:
    planes = make_case("Q4_0").planes
    rows, columns = planes.shape
    assert has_tiles(planes) == (rows % 16 == columns % 256 == 0)
    whole = planes.map(lambda plane: plane.repeat(16, *[1] * (plane.dim() - 1)))
    assert has_tiles(whole) == (columns % 256 == 0)
    assert not has_tiles(whole.map(lambda plane: plane[1:]))
