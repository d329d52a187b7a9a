"""Products in fixed point are those with the numbers, nearer than bfloat16's rounding of x."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.fixed_columns import fix
from sllm.runtime.kernels.fixed_products import fits_fixed, multiply_fixed
from sllm.runtime.kernels.launches import FixedLaunch, candidate_fixed, guess_fixed
from sllm.runtime.kernels.layout import numbers
from sllm.runtime.kernels.nibble_planes import has_nibbles
from tests.sllm.runtime.kernels.nibble_cases import (
    H200,
    NIBBLES,
    random_tokens,
    require_close,
    require_same_alone,
    require_same_anywhere,
    require_same_however_cut,
)
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case

pytestmark = pytest.mark.usefixtures("modelled_ptx")
STEP = 1 / 16383  # Of the largest of 32 numbers: the next integer.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", NIBBLES)
def test_a_product_is_that_with_the_numbers_whatever_says_their_scales(
    scheme: str, dtype: torch.dtype, device: torch.device
) -> None:
    planes = make_case(scheme, rows=21).planes.map(lambda plane: plane.to(device))
    x = random_tokens(1, device, dtype)
    require_close(multiply_fixed(x, planes), x.float() @ numbers(planes).T, dtype)


@pytest.mark.parametrize(
    "launch",
    [
        FixedLaunch(warps=1, unroll=2),
        FixedLaunch(warps=2, unroll=2, shares=2),
        FixedLaunch(warps=4),
        FixedLaunch(warps=2, tiles=2, registers=64),
    ],
)
def test_a_product_is_the_same_however_it_is_cut(launch: FixedLaunch, device: torch.device) -> None:
    planes = make_case("Q4_1", rows=9).planes.map(lambda plane: plane.to(device))
    x = random_tokens(2, device, torch.float16)
    require_same_however_cut(multiply_fixed, planes, x, launch)


def test_a_token_s_bits_do_not_depend_on_its_neighbour(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    x = random_tokens(2, device, torch.bfloat16)
    require_same_alone(multiply_fixed, planes, x, FixedLaunch(warps=2, unroll=2))


def test_x_may_begin_anywhere(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    require_same_anywhere(multiply_fixed, planes, random_tokens(1, device, torch.bfloat16))


def test_x_is_off_by_half_a_step_of_the_largest_of_its_32(device: torch.device) -> None:
    x = random_tokens(2, device, torch.bfloat16)
    x[:, ::50] *= 300
    groups = x.double().view(2, -1, 32)
    found = _as_numbers(fix(x, groups.shape[1]))
    largest = groups.abs().amax(dim=2, keepdim=True)
    assert bool(((found - groups).abs() <= largest * STEP * 0.501).all())


def test_a_product_is_nearer_than_with_x_in_bfloat16(device: torch.device) -> None:
    planes = make_case("Q4_0", rows=64).planes.map(lambda plane: plane.to(device))
    x = random_tokens(1, device, torch.float16)
    x[:, ::50] *= 100
    rows = numbers(planes).double()
    exact = x.double() @ rows.T
    half = FixedLaunch(warps=1, unroll=2, shares=2)  # Shares are added up in float32.
    error = (multiply_fixed(x, planes, half).double() - exact).norm()
    rounded = (x.bfloat16().double() @ rows.T - exact).norm()
    largest = x.double().view(-1, 32).abs().amax(dim=1)
    bound = rows.abs().view(len(rows), -1, 32).sum(2) @ largest * STEP / 2
    bound = (bound.square().sum() + (exact.norm() * torch.finfo(x.dtype).eps) ** 2).sqrt()
    assert error <= bound
    assert error < rounded / 2


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_no_number_in_x_is_none_in_the_result(wrong: float, device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    x = random_tokens(1, device, torch.bfloat16)
    x[0, 40] = wrong
    assert bool(multiply_fixed(x, planes).isnan().all())


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e36])
def test_x_may_be_of_any_size(size: float, device: torch.device) -> None:
    x = torch.full((1, 64), size, dtype=torch.bfloat16, device=device)
    x[0, 3] *= -1
    found = _as_numbers(fix(x, 2))
    assert bool(((found - x.double().view(1, 2, 32)).abs() <= max(size, 1e-30) * STEP).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_nibbles_with_aligned_rows_are_taken(scheme: str, device: torch.device) -> None:
    planes = make_case(scheme).planes.map(lambda plane: plane.to(device))
    assert has_nibbles(planes) == (scheme in NIBBLES)
    assert not has_nibbles(planes.map(lambda plane: plane.flatten(1)[:, 1:].contiguous()))
    x = random_tokens(1, device, torch.float32)
    assert not fits_fixed(x, planes)
    assert not fits_fixed(x.bfloat16().expand(3, -1), planes)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("columns", [64, 576, 4096, 8192, 14336])
@pytest.mark.parametrize("rows", [64, 1024, 8192, 128256])
def test_a_guess_leaves_no_program_without_work(rows: int, columns: int, tokens: int) -> None:
    groups = columns // 32
    launch = guess_fixed(rows, groups, tokens=tokens, processors=H200)
    assert 4 * launch.warps * launch.unroll * (launch.shares - 1) < groups
    assert launch.groups * launch.passes(groups) >= groups
    assert launch.shares == 1 or -(-rows // 16) * launch.shares <= H200


@pytest.mark.parametrize("groups", [20, 128])
def test_candidates_are_distinct_and_of_one_pass_or_more(groups: int) -> None:
    found = list(candidate_fixed(groups))
    assert len(found) == len(set(found))
    assert all(one.passes(groups) >= 1 for one in found)


def _as_numbers(records: torch.Tensor) -> torch.Tensor:
    """Return what records say x is: (tokens, groups, 32), in float64."""
    parts = records[:, :, :16].contiguous().view(torch.int8)
    high, low = parts.view(*records.shape[:2], 2, 4, 2, 4).unbind(2)  # m, b, and then t.
    whole = 256 * high.double() + low.double()
    scale = records[:, :, 17].contiguous().view(torch.float32).double()
    return whole.permute(0, 1, 4, 3, 2).reshape(*records.shape[:2], 32) * scale[:, :, None]
