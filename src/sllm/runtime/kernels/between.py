"""What a layer computes between its products, on the GPU: one launch where PyTorch takes many.

With a few tokens none of it is bound by memory: a launch takes longer than what is in it. So what
counts is how many there are, and two of these stand for some twenty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.gating import gate_columns
from sllm.runtime.kernels.device.head_places import place_one_head
from sllm.runtime.kernels.device.norms import normalise_rows
from sllm.runtime.kernels.fixed_columns import GROUP, room_beside, room_of
from sllm.runtime.kernels.shares import power_of_two

if TYPE_CHECKING:
    from sllm.runtime.kernels.operands import HeadNorms, NewHeads, Norm, Places, Rotation

_GATED_AT_ONCE = 1024
_WIDE_ROW = 2048
_PART, _FEW_ROWS = 512, 8  # Columns that a program writes of each of so many rows.


def normalise(x: torch.Tensor, norm: Norm, *, fixes: bool = False) -> torch.Tensor:
    """Return rows (tokens, width) normalised. fixes: for a product with nibbles."""
    return _normalise(x, None, norm, fixes=fixes)[1]


def add_normalised(
    x: torch.Tensor, added: torch.Tensor, norm: Norm, *, fixes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + added, and that normalised. fixes: for a product with nibbles."""
    return _normalise(x, added, norm, fixes=fixes)


def _normalise(
    x: torch.Tensor, added: torch.Tensor | None, norm: Norm, *, fixes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = x.shape
    x = x.contiguous()
    out = torch.empty_like(x)
    records = room_beside(out) if fixes else None
    total = x if added is None else torch.empty_like(x)
    block = power_of_two(width)
    part = _PART if rows <= _FEW_ROWS and block > _PART else block
    normalise_rows[(rows, block // part)](
        out,
        total,
        records,
        x,
        None if added is None else added.contiguous(),
        norm.weight,
        norm.epsilon,
        norm.offset,
        room_of(records),
        width=width,
        block=block,
        part=part,
        sums=added is not None,
        shifted=norm.offset != 0,
        num_warps=8 if width > _WIDE_ROW else 4,
        **chain_options(),
    )
    return total, out


def place_heads(
    heads: NewHeads, norms: HeadNorms | None, rotation: Rotation, places: Places
) -> torch.Tensor:
    """Return the queries rotated, and put keys, rotated, and values into the cache."""
    tokens, count, width = heads.query.shape
    kv_heads, half = heads.key.shape[1], rotation.cos.shape[-1]
    out = torch.empty((tokens, count, width), dtype=heads.query.dtype, device=heads.query.device)
    assert heads.query.stride(2) == heads.key.stride(2) == heads.value.stride(2) == 1
    assert heads.key.stride(1) == heads.value.stride(1) == width
    place_one_head[(tokens, count + 2 * kv_heads)](
        out,
        places.keys,
        places.values,
        heads.query,
        heads.key,
        heads.value,
        None if norms is None else norms.query.weight,
        None if norms is None else norms.key.weight,
        rotation.cos,
        rotation.sin,
        places.tokens,
        heads.query.stride(0),
        heads.query.stride(1),
        heads.key.stride(0),
        heads.value.stride(0),
        count,
        kv_heads,
        0.0 if norms is None else norms.query.epsilon,
        0.0 if norms is None else norms.query.offset,
        width=width,
        block_width=power_of_two(width),
        half=half,
        block_half=power_of_two(half),
        interleaved=rotation.interleaved,
        normed=norms is not None,
        shifted=norms is not None and norms.query.offset != 0,
        num_warps=1,
        **chain_options(),
    )
    return out


def gate_up(gate: torch.Tensor, up: torch.Tensor, *, fixes: bool = False) -> torch.Tensor:
    """Return silu(gate) * up; rows (tokens, width) may be apart.

    fixes: for a product with nibbles.
    """
    tokens, width = gate.shape
    assert gate.stride(1) == up.stride(1) == 1
    out = torch.empty((tokens, width), dtype=gate.dtype, device=gate.device)
    records = room_beside(out) if fixes else None
    room = room_of(records)
    gate_columns[(-(-max(width, GROUP * room) // _GATED_AT_ONCE), tokens)](
        out,
        records,
        gate,
        up,
        gate.stride(0),
        up.stride(0),
        width,
        room,
        block=_GATED_AT_ONCE,
        num_warps=4,
        **chain_options(),
    )
    return out
