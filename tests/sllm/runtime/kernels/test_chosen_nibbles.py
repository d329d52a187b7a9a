"""Products with chosen experts on the matrix units are those of their numbers; PTX is modelled."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.chosen_nibbles import (
    fits_nibbles,
    guess_launch,
    multiply_down_nibbles,
    multiply_gate_up_nibbles,
)
from sllm.runtime.kernels.launches import NibbleLaunch
from tests.sllm.runtime.kernels.nibble_cases import NIBBLES, random_tokens, require_close
from tests.sllm.runtime.kernels.slot_cases import fill_slots

pytestmark = pytest.mark.usefixtures("modelled_ptx")
ROWS = 21
CHOSEN = [[2, 0], [3, 1]]


@pytest.mark.parametrize("scheme", NIBBLES)
def test_gate_and_up_are_those_of_each_pair_s_expert(scheme: str, device: torch.device) -> None:
    (gate, up), values = fill_slots([scheme, scheme], ROWS, device)
    slots = torch.tensor(CHOSEN, dtype=torch.int32, device=device)
    x = random_tokens(2, device, torch.float16) / 64
    out = torch.empty((2, 2, ROWS), device=device, dtype=torch.float16)
    matrices = (gate.first, up.first, gate.slot_bytes)
    multiply_gate_up_nibbles(x, slots, matrices, out=out)
    each = [torch.einsum("tc,tkrc->tkr", x.float(), value[slots.long()]) for value in values]
    require_close(out, torch.nn.functional.silu(each[0]) * each[1], torch.float16)


@pytest.mark.parametrize("launch", [None, NibbleLaunch(warps=1), NibbleLaunch(warps=4, ahead=True)])
def test_down_has_a_row_of_x_for_each_pair(
    launch: NibbleLaunch | None, device: torch.device
) -> None:
    (down,), (values,) = fill_slots(["Q4_K"], ROWS, device)
    slots = torch.tensor([[2, 1, -2, -1]], dtype=torch.int32, device=device)
    x = random_tokens(4, device, torch.bfloat16).unsqueeze(0)
    out = torch.full((1, 4, ROWS), 7.0, device=device)
    multiply_down_nibbles(x, slots, (down.first, down.slot_bytes), out=out, launch=launch)
    expected = torch.einsum("tkc,tkrc->tkr", x[:, :2].float(), values[slots[:, :2].long()])
    torch.testing.assert_close(out[:, :2], expected, rtol=1e-4, atol=1e-4)
    assert (out[:, 2] == 0).all(), "it has no expert"
    assert (out[:, 3] == 7).all(), "it is another launch's"


def test_gate_and_up_may_be_of_different_formats(device: torch.device) -> None:
    (gate, up), values = fill_slots(["Q4_0", "affine-128"], ROWS, device)
    slots = torch.tensor([[1]], dtype=torch.int32, device=device)
    x = random_tokens(1, device, torch.bfloat16) / 64
    out = torch.empty((1, 1, ROWS), device=device)
    matrices = (gate.first, up.first, gate.slot_bytes)
    multiply_gate_up_nibbles(x, slots, matrices, out=out)
    each = [x.float() @ value[1].T for value in values]
    torch.testing.assert_close(
        out[0], torch.nn.functional.silu(each[0]) * each[1], rtol=1e-3, atol=1e-5
    )


def test_rows_are_gone_over_at_least_twice() -> None:
    assert [guess_launch(groups).warps for groups in (128, 64, 32, 8, 4)] == [8, 8, 4, 1, 1]


def test_a_device_without_the_units_has_other_products(device: torch.device) -> None:
    (gate,), _ = fill_slots(["Q4_0"], ROWS, device)
    x = random_tokens(1, device, torch.bfloat16)
    assert fits_nibbles(x, gate.first) == (device.type == "cuda")
    assert not fits_nibbles(x.float(), gate.first)
