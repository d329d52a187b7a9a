"""Products of nibbles on the matrix units are those with their numbers; PTX is modelled here."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.launches import NibbleLaunch, candidate_nibbles, guess_nibbles
from sllm.runtime.kernels.layout import numbers
from sllm.runtime.kernels.nibble_products import fits_nibbles, has_nibbles, multiply_nibbles
from tests.sllm.runtime.kernels.nibble_cases import H200, NIBBLES, random_tokens, require_close
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case

pytestmark = pytest.mark.usefixtures("modelled_ptx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", NIBBLES)
def test_a_product_is_that_with_the_numbers_whatever_says_their_scales(
    scheme: str, dtype: torch.dtype, device: torch.device
) -> None:
    planes = make_case(scheme, rows=21).planes.map(lambda plane: plane.to(device))
    x = random_tokens(1, device, dtype)
    require_close(multiply_nibbles(x, planes), x.float() @ numbers(planes).T, dtype)


@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 8])
def test_some_tokens_are_multiplied_at_once(tokens: int, device: torch.device) -> None:
    planes = make_case("Q4_K", rows=17).planes.map(lambda plane: plane.to(device))
    x = random_tokens(tokens, device, torch.bfloat16)
    found = multiply_nibbles(x, planes)
    require_close(found, x.float() @ numbers(planes).T, torch.bfloat16)


@pytest.mark.parametrize(
    "launch",
    [
        NibbleLaunch(warps=1, ahead=True),
        NibbleLaunch(warps=2, ahead=True, shares=2),
        NibbleLaunch(warps=4, registers=64),
        NibbleLaunch(warps=1, shares=3),
    ],
)
def test_a_product_is_the_same_however_it_is_cut(
    launch: NibbleLaunch, device: torch.device
) -> None:
    planes = make_case("Q4_1").planes.map(lambda plane: plane.to(device))
    planes = planes.map(lambda plane: plane.repeat(1, 3, *[1] * (plane.dim() - 2)))
    x = random_tokens(2, device, torch.float16).repeat(1, 3)
    found = multiply_nibbles(x, planes, launch)
    require_close(found, x.float() @ numbers(planes).T, torch.float16)
    assert torch.equal(found, multiply_nibbles(x, planes, launch))


def test_a_token_s_bits_do_not_depend_on_its_neighbours(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    x = random_tokens(8, device, torch.bfloat16)
    launch = NibbleLaunch(warps=1)
    alone = torch.cat([multiply_nibbles(row, planes, launch) for row in x.split(1)])
    assert torch.equal(multiply_nibbles(x, planes, launch), alone)


def test_x_may_begin_anywhere(device: torch.device) -> None:
    planes = make_case("Q4_0").planes.map(lambda plane: plane.to(device))
    x = random_tokens(1, device, torch.bfloat16)
    moved = torch.cat((x.new_zeros(1, 3), x), dim=1)[:, 3:]
    assert torch.equal(multiply_nibbles(moved, planes), multiply_nibbles(x, planes))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_nibbles_with_aligned_rows_are_taken(scheme: str, device: torch.device) -> None:
    planes = make_case(scheme).planes.map(lambda plane: plane.to(device))
    assert has_nibbles(planes) == (scheme in NIBBLES)
    assert not has_nibbles(planes.map(lambda plane: plane.flatten(1)[:, 1:].contiguous()))
    x = random_tokens(1, device, torch.float32)
    assert not fits_nibbles(x, planes)
    assert not fits_nibbles(x.bfloat16().expand(9, -1), planes)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("rows", [64, 1024, 4096, 8192, 14336, 128256])
def test_a_guess_fills_the_device_once_or_has_many_programs(rows: int, tokens: int) -> None:
    launch = guess_nibbles(rows, 128, tokens=tokens, planes=2, processors=H200)
    warps = -(-rows // 16) * launch.warps * launch.shares
    assert launch.groups * launch.shares <= 128
    assert warps <= 32 * H200 or (launch.warps == 4 and launch.shares == 1)


def test_registers_are_bounded_where_that_makes_a_round_less() -> None:
    def registers(rows: int, tokens: int) -> int | None:
        return guess_nibbles(rows, 128, tokens=tokens, planes=2, processors=H200).registers

    assert registers(8192, tokens=1) == 64  # Four programs of eight warps.
    assert registers(14336, tokens=1) is None  # Seven of four warps have room for 72.
    assert registers(28672, tokens=1) is None  # Fourteen are two rounds, whether of seven or eight.
    assert registers(8192, tokens=8) == 128


@pytest.mark.parametrize("groups", [20, 128])
def test_candidates_are_distinct_and_leave_no_program_without_work(groups: int) -> None:
    found = list(candidate_nibbles(groups, tokens=1))
    assert len(found) == len(set(found))
    assert all(one.groups * one.shares <= groups for one in found)
