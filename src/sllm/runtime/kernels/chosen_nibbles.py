"""Products with chosen experts whose matrices are of nibbles, on the matrix units.

As `expert_products`, for x of 16 bits, and planes of four bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.chosen_nibbles import down_nibbles, gate_up_nibbles
from sllm.runtime.kernels.launches import NibbleLaunch
from sllm.runtime.kernels.nibble_planes import (
    HALVES,
    as_aligned,
    as_words,
    has_nibbles,
    has_units,
    span_of,
)

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

_ROWS = 16
_WORD_BYTES = 4
_STEPS = 2  # Of a program, at least: what is ahead of the first is on its way with it.


def fits_nibbles(x: torch.Tensor, *matrices: Planes) -> bool:
    """Return whether the device has these units, and x and the planes are what they take."""
    return has_units(x) and all(map(has_nibbles, matrices))


def multiply_gate_up_nibbles(
    x: torch.Tensor,
    slots: torch.Tensor,
    matrices: tuple[Planes, Planes, int],
    *,
    out: torch.Tensor,
    launch: NibbleLaunch | None = None,
) -> None:
    """Do as multiply_gate_up. matrices: gate and up of the first slot, and a slot's bytes."""
    tokens, chosen = slots.shape
    gate, up, slot_bytes = matrices
    rows, groups, _ = gate.low.shape
    launch = launch or guess_launch(groups)
    gate_up_nibbles[(-(-rows // _ROWS), tokens * chosen)](
        out,
        as_aligned(x).view(torch.int32),
        slots,
        *_in_order(gate),
        *_in_order(up),
        slot_bytes // _WORD_BYTES,
        rows,
        groups,
        chosen,
        **_compiled_for(gate),
        **{f"up_{name}": value for name, value in _compiled_for(up).items()},
        **_options(x, groups, launch),
    )


def multiply_down_nibbles(
    x: torch.Tensor,
    slots: torch.Tensor,
    matrices: tuple[Planes, int],
    *,
    out: torch.Tensor,
    launch: NibbleLaunch | None = None,
) -> None:
    """Do as multiply_down. matrices: that of the first slot, and a slot's bytes."""
    down, slot_bytes = matrices
    rows, groups, _ = down.low.shape
    launch = launch or guess_launch(groups)
    down_nibbles[(-(-rows // _ROWS), slots.numel())](
        out,
        as_aligned(x).view(torch.int32),
        slots,
        *_in_order(down),
        slot_bytes // _WORD_BYTES,
        rows,
        groups,
        **_compiled_for(down),
        **_options(x, groups, launch),
    )


def guess_launch(groups: int) -> NibbleLaunch:
    """Return a launch for rows of so many groups: up to eight warps, which go over them twice."""
    warps = 8
    while warps > 1 and groups < _STEPS * NibbleLaunch(warps=warps).groups:
        warps //= 2
    return NibbleLaunch(warps=warps, ahead=True)


def _in_order(planes: Planes) -> tuple[torch.Tensor | None, ...]:
    return (planes.low, *as_words(planes, narrow=torch.int16))


def _compiled_for(planes: Planes) -> dict[str, Any]:
    return {
        "zero": planes.format.zero,
        "span": span_of(planes),
        "scaled": HALVES[planes.scales.dtype],
    }


def _options(x: torch.Tensor, groups: int, launch: NibbleLaunch) -> dict[str, Any]:
    return {
        "half": x.dtype == torch.float16,
        "warps": launch.warps,
        "even": groups % launch.groups == 0,
        "ahead": launch.ahead,
        "num_warps": launch.warps,
        "enable_fp_fusion": True,
        **chain_options(),
    }
