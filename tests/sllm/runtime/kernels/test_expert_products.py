"""Products with chosen experts are those of each expert's numbers, wherever its slot is."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.expert_products import (
    add_pairs,
    multiply_down,
    multiply_gate_up,
)
from sllm.runtime.kernels.launches import GemvLaunch
from tests.sllm.runtime.kernels.plane_cases import SCHEMES
from tests.sllm.runtime.kernels.slot_cases import fill_slots
from tests.sllm.runtime.quant.block_cases import COLUMNS

TOLERANCE = 2e-5


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator).to(device)


def _require_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert float(error) <= TOLERANCE


CHOSEN = [[2, 0, 3], [3, 1, 0]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gate_and_up_are_those_of_each_pair_s_expert(scheme: str, device: torch.device) -> None:
    (gate, up), values = fill_slots([scheme, scheme], 5, device)
    slots = torch.tensor(CHOSEN, dtype=torch.int32, device=device)
    x = _random(2, COLUMNS, device=device) / 64
    out = torch.empty((2, 3, 5), device=device)
    multiply_gate_up(x, slots, gate, up, out=out)
    each = [torch.einsum("tc,tkrc->tkr", x, value[slots.long()]) for value in values]
    _require_close(out, torch.nn.functional.silu(each[0]) * each[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_down_has_a_row_of_x_for_each_pair(scheme: str, device: torch.device) -> None:
    (down,), (values,) = fill_slots([scheme], 5, device)
    slots = torch.tensor(CHOSEN, dtype=torch.int32, device=device)
    x = _random(2, 3, COLUMNS, device=device)
    out = torch.empty((2, 3, 5), device=device)
    multiply_down(x, slots, down, out=out, launch=GemvLaunch(rows=4, warps=1))
    _require_close(out, torch.einsum("tkc,tkrc->tkr", x, values[slots.long()]))


def test_gate_and_up_may_be_of_different_formats(device: torch.device) -> None:
    (gate, up), values = fill_slots(["Q4_0", "Q6_K"], 3, device)
    slots = torch.tensor([[1]], dtype=torch.int32, device=device)
    x = _random(1, COLUMNS, device=device) / 64
    out = torch.empty((1, 1, 3), device=device)
    multiply_gate_up(x, slots, gate, up, out=out)
    each = [x @ value[1].T for value in values]
    _require_close(out[0], torch.nn.functional.silu(each[0]) * each[1])


def test_pairs_in_several_launches_have_the_bits_of_one(device: torch.device) -> None:
    (gate, up), _ = fill_slots(["Q4_1", "Q4_1"], 5, device)
    (down,), _ = fill_slots(["Q4_K"], 7, device)
    slots = torch.tensor(CHOSEN, dtype=torch.int32, device=device)
    x, wide = _random(2, COLUMNS, device=device), _random(2, 3, COLUMNS, device=device)
    found = []
    for turns in ([slots], [slots.where(slots < 2, -1), slots.where(slots >= 2, -1)]):
        first = torch.full((2, 3, 5), torch.nan, device=device)
        second = torch.full((2, 3, 7), torch.nan, device=device)
        for turn in turns:
            multiply_gate_up(x, turn, gate, up, out=first)
            multiply_down(wide, turn, down, out=second)
        found.append((first, second))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not found[0][1].isnan().any()


def test_a_pair_without_an_expert_is_nothing(device: torch.device) -> None:
    (down,), (values,) = fill_slots(["Q4_0"], 5, device)
    slots = torch.tensor([[2, -2, -1]], dtype=torch.int32, device=device)
    x = _random(1, 3, COLUMNS, device=device)
    out = torch.full((1, 3, 5), 7.0, device=device)
    multiply_down(x, slots, down, out=out, launch=GemvLaunch(rows=4, warps=1))
    _require_close(out[0, 0], values[2] @ x[0, 0])
    assert out[0, 1:].tolist() == [[0.0] * 5, [7.0] * 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_token_s_sum_is_that_of_its_pairs_by_their_shares(
    dtype: torch.dtype, device: torch.device
) -> None:
    found, shares = _random(3, 4, 300, device=device), _random(3, 4, device=device)
    summed = add_pairs(found, shares, dtype)
    expected = (found * shares.unsqueeze(-1)).sum(1)
    assert summed.dtype == dtype
    torch.testing.assert_close(summed, expected.to(dtype), rtol=2e-3, atol=1e-5)
