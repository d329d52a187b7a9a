"""Products of tokens with the experts chosen for them: each expert's planes in a slot of a cache.

A pair of token and expert reads the expert's bytes; what tokens share comes from the GPU's cache.
So a layer is bound by the bytes of the experts that are asked for, while pairs are few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.chosen_nibbles import (
    fits_nibbles,
    multiply_down_nibbles,
    multiply_gate_up_nibbles,
)
from sllm.runtime.kernels.device.chosen_experts import add_chosen, down_chosen, gate_up_chosen
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import GemvLaunch, guess_gemv, processors_of
from sllm.runtime.kernels.products import ONE, compiled_for, format_key, planes_in_order

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

_ADDED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class SlotPlanes:
    """A matrix of every slot: planes of the first one, and how far the next one is.

    slot_bytes: a multiple of 256, as are the addresses of planes.
    """

    first: Planes
    slot_bytes: int


def multiply_gate_up(
    x: torch.Tensor,
    slots: torch.Tensor,
    gate: SlotPlanes,
    up: SlotPlanes,
    *,
    out: torch.Tensor,
    launch: GemvLaunch | None = None,
) -> None:
    """Write silu(gate(x)) * up(x) of each pair to `out`, (tokens, chosen, rows).

    slots: (tokens, chosen), int32; where it is negative, `out` keeps what it has.
    """
    tokens, chosen = slots.shape
    rows, groups, _ = gate.first.low.shape
    assert gate.first.low.shape == up.first.low.shape
    assert gate.slot_bytes == up.slot_bytes
    if launch is None and fits_nibbles(x, gate.first, up.first):
        matrices = (gate.first, up.first, gate.slot_bytes)
        multiply_gate_up_nibbles(x, slots, matrices, out=out)
        return
    launch = launch or find_launch(gate.first, chosen)
    others = {f"up_{name}": value for name, value in compiled_for(up.first).items()}
    gate_up_chosen[(-(-rows // launch.rows), tokens * chosen)](
        out,
        x.contiguous(),
        slots,
        *planes_in_order(gate.first),
        *planes_in_order(up.first),
        gate.slot_bytes,
        rows,
        groups,
        chosen,
        ONE,
        **compiled_for(gate.first),
        **others,
        **launch.options(groups),
        **chain_options(),
    )


def multiply_down(
    x: torch.Tensor,
    slots: torch.Tensor,
    down: SlotPlanes,
    *,
    out: torch.Tensor,
    launch: GemvLaunch | None = None,
) -> None:
    """Write each pair's row of x, (tokens, chosen, columns), times its expert's matrix to `out`.

    slots: (tokens, chosen), int32; where it is -1, `out` keeps what it has, and gets 0 where -2.
    """
    tokens, chosen = slots.shape
    rows, groups, _ = down.first.low.shape
    assert x.is_contiguous()
    if launch is None and fits_nibbles(x, down.first):
        multiply_down_nibbles(x, slots, (down.first, down.slot_bytes), out=out)
        return
    launch = launch or find_launch(down.first, chosen)
    down_chosen[(-(-rows // launch.rows), tokens * chosen)](
        out,
        x,
        slots,
        *planes_in_order(down.first),
        down.slot_bytes,
        rows,
        groups,
        ONE,
        **compiled_for(down.first),
        **launch.options(groups),
        **chain_options(),
    )


def add_pairs(found: torch.Tensor, shares: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return each token's sum of (tokens, chosen, columns) by shares (tokens, chosen), in order."""
    tokens, chosen, columns = found.shape
    out = torch.empty((tokens, columns), dtype=dtype, device=found.device)
    blocks = -(-columns // _ADDED_AT_ONCE)
    add_chosen[(blocks, tokens)](
        out,
        found,
        shares.contiguous(),
        columns,
        chosen,
        block=_ADDED_AT_ONCE,
        **chain_options(),
    )
    return out


def find_launch(planes: Planes, chosen: int) -> GemvLaunch:
    """Return the launch for a matrix: one for any number of tokens, so that bits do not differ."""
    rows, groups, _ = planes.low.shape
    return _found(launch_key(planes, chosen), (rows, groups), chosen, planes.low.device)


def launch_key(planes: Planes, chosen: int) -> str:
    """Return what a launch is remembered by."""
    return f"chosen {format_key(planes)} {chosen}"


@cache
def _found(key: str, shape: tuple[int, int], chosen: int, device: torch.device) -> GemvLaunch:
    rows, groups = shape
    guess = guess_gemv(rows * chosen, groups, tokens=1, processors=processors_of(device))
    return replace(book_of(device).find(GemvLaunch, key) or guess, shares=1)
