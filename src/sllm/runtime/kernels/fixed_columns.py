"""x in fixed point, beside x: whoever makes x for a product with nibbles writes it there.

Else the product has it written by a launch of its own, which takes as long as much of the product.
"""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.fixed_columns import RECORD, fix_columns
from sllm.runtime.kernels.nibble_planes import has_units
from sllm.runtime.kernels.shares import power_of_two

MOST_FIXED_TOKENS = 2
GROUP = 32
"""Columns under one scale."""
_FIXED_AT_ONCE = 4  # Groups.
_records = WeakTensorKeyDictionary()


def takes_fixed(x: torch.Tensor) -> bool:
    """Return whether x may be in fixed point: few tokens, on a device that has the units."""
    return 0 < len(x) <= MOST_FIXED_TOKENS and x.shape[1] % GROUP == 0 and has_units(x)


def room_beside(x: torch.Tensor) -> torch.Tensor | None:
    """Return room for the records of x, (tokens, columns), if it may be in fixed point.

    Whoever takes it writes all of it, (tokens, a power of two of groups, RECORD), int32, from what
    is then in x: and changes x no more.
    """
    if not takes_fixed(x):
        return None
    records = _make_room(x, power_of_two(x.shape[1] // GROUP))
    _records[x] = records
    return records


def room_of(records: torch.Tensor | None) -> int:
    """Return for how many groups of each token there is room."""
    return 0 if records is None else records.shape[1]


def fixed(x: torch.Tensor, room: int) -> torch.Tensor:
    """Return x in fixed point, and zeros up to `room` groups or more: as it is, or made now."""
    records: torch.Tensor | None = _records[x] if x in _records else None  # noqa: SIM401 - no types
    return fix(x, room) if records is None or room_of(records) < room else records


def fix(x: torch.Tensor, room: int) -> torch.Tensor:
    """Return x in fixed point, as `planar_fixed` reads it, and zeros up to `room` groups."""
    tokens, columns = x.shape
    records = _make_room(x, room)
    fix_columns[(-(-room // _FIXED_AT_ONCE), tokens)](
        records,
        x.contiguous(),
        columns // GROUP,
        room,
        block=_FIXED_AT_ONCE,
        num_warps=1,
        **chain_options(),
    )
    return records


def _make_room(x: torch.Tensor, room: int) -> torch.Tensor:
    return x.new_empty((len(x), room, RECORD.value), dtype=torch.int32)
