"""Products of a few tokens with nibbles, on the matrix units: y = x times the transpose.

As `products`, for what takes fewest instructions on them: x of 16 bits, planes of four bits whose
scales have 16 as well, and rows of whole fours of groups. A weight costs 2.3 instructions for one
token or two, and that is as few as it takes to keep up with the memory.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from triton import language

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.planar_mma import planar_mma
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import NibbleLaunch, guess_nibbles, processors_of
from sllm.runtime.kernels.products import format_key
from sllm.runtime.kernels.shares import add_up, make_room, power_of_two, share_groups

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

MOST_NIBBLE_TOKENS = 8
HALVES = {torch.float16: language.float16, torch.bfloat16: language.bfloat16}
_ROWS = 16
_GROUPS_AT_ONCE = 4  # Of a warp.
_LOAD_BYTES, _WORD_BYTES = 16, 4
_WITH_UNITS = (8, 0)


def fits_nibbles(x: torch.Tensor, planes: Planes) -> bool:
    """Return whether the device has these units, and x and the planes are what they take."""
    return 0 < len(x) <= MOST_NIBBLE_TOKENS and has_units(x) and has_nibbles(planes)


def has_units(x: torch.Tensor) -> bool:
    """Return whether the matrix units of x's device take its type."""
    return x.dtype in HALVES and _capability(x.device) >= _WITH_UNITS


def has_nibbles(planes: Planes) -> bool:
    """Return whether planes are of four bits each, as they are read: aligned, in whole fours."""
    form, low, scales = planes.format, planes.low, planes.scales
    others = (plane for plane in planes.tensors.values() if plane is not low)
    return (
        form.bits == 4
        and low.shape[1] % _GROUPS_AT_ONCE == 0
        and scales.dtype in HALVES
        and (planes.offsets is None or planes.offsets.dtype == scales.dtype)
        and ((planes.steps is None and planes.floors is None) or _has_bytes(planes))
        and low.data_ptr() % _LOAD_BYTES == 0
        and all(plane.data_ptr() % _WORD_BYTES == 0 for plane in others)
    )


def multiply_nibbles(
    x: torch.Tensor, planes: Planes, launch: NibbleLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose, for up to MOST_NIBBLE_TOKENS tokens: (tokens, rows)."""
    tokens, (rows, groups, _) = len(x), planes.low.shape
    assert 0 < tokens <= MOST_NIBBLE_TOKENS
    assert x.shape[1] == planes.shape[1]
    assert has_nibbles(planes)
    if launch is None:
        launch = _found(nibble_key(planes, tokens), planes, tokens)
    each, shares = share_groups(groups, launch.shares, launch.groups)
    partial = make_room(x, shares, rows)
    planar_mma[(-(-rows // _ROWS), shares)](
        partial,
        as_aligned(x).view(torch.int32),
        planes.low,
        *as_words(planes, narrow=torch.int16),
        rows,
        groups,
        each,
        tokens,
        zero=planes.format.zero,
        span=span_of(planes),
        scaled=HALVES[planes.scales.dtype],
        half=x.dtype == torch.float16,
        pairs=power_of_two(-(-tokens // 2)),
        warps=launch.warps,
        even=groups % launch.groups == 0,
        ahead=launch.ahead,
        num_warps=launch.warps,
        enable_fp_fusion=True,
        **({} if launch.registers is None else {"maxnreg": launch.registers}),
        **chain_options(),
    )
    return add_up(partial, x.dtype)


def nibble_key(planes: Planes, tokens: int) -> str:
    """Return what a launch is remembered by; as many tokens as fit share one."""
    return f"nibbles {format_key(planes)} {power_of_two(tokens)}"


def _found(key: str, planes: Planes, tokens: int) -> NibbleLaunch:
    rows, groups, _ = planes.low.shape
    kinds, device = len(planes.tensors), planes.low.device
    return _found_by(key, (rows, groups), tokens=tokens, planes=kinds, device=device)


@cache
def _found_by(
    key: str, shape: tuple[int, int], *, tokens: int, planes: int, device: torch.device
) -> NibbleLaunch:
    processors = processors_of(device)
    guess = guess_nibbles(*shape, tokens=tokens, planes=planes, processors=processors)
    return book_of(device).find(NibbleLaunch, key) or guess


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def as_aligned(x: torch.Tensor) -> torch.Tensor:
    """Return x in one dimension, as loads of 16 bytes can read it."""
    x = x.contiguous().view(-1)
    return x if x.data_ptr() % _LOAD_BYTES == 0 else x.clone()


def as_words(planes: Planes, *, narrow: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    """Return scales, offsets, steps and floors as kernels read them: two in a word, or one."""
    wide = torch.int32 if span_of(planes) == 1 else torch.int16
    return (
        planes.scales.view(wide),
        None if planes.offsets is None else planes.offsets.view(wide),
        None if planes.steps is None else planes.steps.view(narrow),
        None if planes.floors is None else planes.floors.view(narrow),
    )


def _has_bytes(planes: Planes) -> bool:
    """Return whether there are narrow scales, all of them unsigned bytes."""
    narrow = (planes.steps, planes.floors)
    return planes.offsets is not None and all(
        plane is not None and plane.dtype == torch.uint8 for plane in narrow
    )


def span_of(planes: Planes) -> int:
    """Return how many groups share a scale."""
    return planes.format.scale_columns // planes.format.group
