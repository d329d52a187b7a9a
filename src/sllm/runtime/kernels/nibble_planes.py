"""Planes of nibbles, as kernels of the matrix units take them and read what says their numbers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from triton import language

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

HALVES = {torch.float16: language.float16, torch.bfloat16: language.bfloat16}
_GROUPS_AT_ONCE = 4  # Of a warp.
_LOAD_BYTES, _WORD_BYTES = 16, 4
_WITH_UNITS = (8, 0)


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


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
