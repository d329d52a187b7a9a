"""Products of tokens as the units' columns are those with the numbers; PTX is modelled here."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.column_products import fits_columns, multiply_columns
from sllm.runtime.kernels.launches import ColumnsLaunch, candidate_columns, guess_columns
from sllm.runtime.kernels.layout import numbers
from tests.sllm.runtime.kernels.nibble_cases import (
    H200,
    NIBBLES,
    random_tokens,
    require_close,
    require_same_alone,
    require_same_anywhere,
    require_same_however_cut,
)
from tests.sllm.runtime.kernels.plane_cases import make_case

pytestmark = pytest.mark.usefixtures("modelled_ptx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", NIBBLES)
def test_a_product_is_that_with_the_numbers_whatever_says_their_scales(
    scheme: str, dtype: torch.dtype, device: torch.device
) -> None:
    planes = make_case(scheme, rows=21).planes.map(lambda plane: plane.to(device))
    x = random_tokens(7, device, dtype)
    require_close(multiply_columns(x, planes), x.float() @ numbers(planes).T, dtype)


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 16, 33, 64])
def test_tokens_are_multiplied_by_eights(tokens: int, device: torch.device) -> None:
    planes = make_case("Q4_K", rows=17).planes.map(lambda plane: plane.to(device))
    x = random_tokens(tokens, device, torch.bfloat16)
    found = multiply_columns(x, planes)
    require_close(found, x.float() @ numbers(planes).T, torch.bfloat16)


@pytest.mark.parametrize(
    "launch",
    [
        ColumnsLaunch(tall=1, deep=1),
        ColumnsLaunch(tall=2, deep=2, tiles=2),
        ColumnsLaunch(tall=1, deep=8, shares=2),
        ColumnsLaunch(tall=4, deep=1, tiles=2, shares=3),
    ],
)
@pytest.mark.parametrize("scheme", ["Q4_0", "affine-64"])
def test_a_product_is_the_same_however_it_is_cut(
    scheme: str, launch: ColumnsLaunch, device: torch.device
) -> None:
    planes = make_case(scheme, rows=40).planes.map(lambda plane: plane.to(device))
    x = random_tokens(9, device, torch.float16)
    require_same_however_cut(multiply_columns, planes, x, launch)


def test_a_token_s_bits_do_not_depend_on_its_neighbours(device: torch.device) -> None:
    planes = make_case("Q4_1").planes.map(lambda plane: plane.to(device))
    x = random_tokens(16, device, torch.bfloat16)
    require_same_alone(multiply_columns, planes, x, ColumnsLaunch(tall=1, deep=2))


def test_x_may_begin_anywhere(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    require_same_anywhere(multiply_columns, planes, random_tokens(3, device, torch.bfloat16))


def test_only_some_tokens_of_16_bits_are_taken(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    x = random_tokens(64, device, torch.bfloat16)
    assert fits_columns(x, planes) == capable
    assert not fits_columns(x.float(), planes)
    assert not fits_columns(x[:2], planes)
    assert not fits_columns(torch.cat((x, x)), planes)
    other = make_case("Q8_0").planes.map(lambda plane: plane.to(device))
    assert not fits_columns(x, other)


@pytest.mark.parametrize("tokens", [4, 8, 16, 64])
@pytest.mark.parametrize("rows", [64, 1024, 4096, 8192, 14336, 128256])
def test_a_guess_has_work_for_all_and_no_program_without(rows: int, tokens: int) -> None:
    launch = guess_columns(rows, 128, tokens=tokens, processors=H200)
    programs = -(-rows // (16 * launch.tiles * launch.tall)) * launch.shares
    assert launch.groups * launch.shares <= 128
    assert launch.shares == 1 or programs <= 3 * H200


@pytest.mark.parametrize("groups", [20, 128])
def test_candidates_are_distinct_and_leave_no_program_without_work(groups: int) -> None:
    found = list(candidate_columns(groups))
    assert len(found) == len(set(found))
    assert all(one.groups * one.shares <= groups for one in found)
