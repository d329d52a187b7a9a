"""Planes: quantised weights as a GPU reads them, and what they say, in plain PyTorch.

A row is cut into groups of four words, so that a thread reads 16 aligned bytes of weights at a
time: 32 nibbles, or 16 bytes. Everything about a weight but those low bits is in planes of its own.
A weight n is scale * (n - zero) + offset, where zero belongs to the format. The scale of a GGUF
superblock is the product of two planes: a float16 of 256 columns, a small integer of 16 or 32.

Word w of a group has the bits of `parts` weights: part k is column k * 4 + w. So part k of a
group's words meets four neighbours of x, and a scale of half a group covers half of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 4
"""Words of a group: what one load brings."""


@dataclass(frozen=True, slots=True)
class Format:
    """How many bits a weight has, the n that means zero, and how far a scale reaches.

    halves: how many of the narrow scales a group has, where there are two planes of scales.
    """

    bits: int
    zero: int
    scale_columns: int
    halves: int = 1

    @property
    def low_bits(self) -> int:
        """Bits of a weight that are in the words: a nibble, or a byte."""
        return 8 if self.bits == 8 else 4

    @property
    def parts(self) -> int:
        """Weights in a word."""
        return 32 // self.low_bits

    @property
    def group(self) -> int:
        """Columns of a group."""
        return WIDTH * self.parts

    @property
    def step_columns(self) -> int:
        """Columns of a narrow scale."""
        return self.group // self.halves


@dataclass(frozen=True, slots=True)
class Planes:
    """A matrix in planes; each has a row per row of the matrix.

    low: (rows, groups, WIDTH), int32. high: what does not fit a nibble, (rows, groups, WIDTH):
    uint8 with a bit for each part, or int16 with two. scales, offsets: floats, one for
    `scale_columns` columns. steps, floors: small integers that multiply them, one for
    `step_columns` columns.
    """

    format: Format
    low: torch.Tensor
    scales: torch.Tensor
    high: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    floors: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        return self.low.shape[0], self.low.shape[1] * self.format.group

    @property
    def size_bytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.nbytes for plane in self.tensors.values())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The planes that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {name: plane for name, plane in named.items() if plane is not None}

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Planes:
        """Return the planes with the same done to each: some of the rows, or another device."""
        return Planes(self.format, **{name: change(plane) for name, plane in self.tensors.items()})


def numbers(planes: Planes) -> torch.Tensor:
    """Return the weights as numbers, in float32: (rows, columns)."""
    rows, columns = planes.shape
    weights = (unpack(planes) - planes.format.zero).view(rows, -1, planes.format.step_columns)
    found = weights.float() * _factor(planes, planes.scales, planes.steps)
    if planes.offsets is not None:
        found = found + _factor(planes, planes.offsets, planes.floors)
    return found.view(rows, columns)


def unpack(planes: Planes) -> torch.Tensor:
    """Return every n: (rows, columns), int32."""
    form = planes.format
    part = torch.arange(form.parts, dtype=torch.int32, device=planes.low.device).view(-1, 1)
    found = (planes.low.unsqueeze(2) >> (part * form.low_bits)) & ((1 << form.low_bits) - 1)
    if planes.high is not None:
        more = form.bits - form.low_bits
        high = (planes.high.to(torch.int32).unsqueeze(2) >> (part * more)) & ((1 << more) - 1)
        found = found | high << form.low_bits
    return found.reshape(planes.shape)


def pack(form: Format, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the planes low and high of every n: (rows, columns), of any integer type."""
    rows, columns = weights.shape
    assert columns % form.group == 0
    split = weights.to(torch.int32).view(rows, -1, form.parts, WIDTH)
    low = _join(split & ((1 << form.low_bits) - 1), form.low_bits)
    more = form.bits - form.low_bits
    if not more:
        return low, None
    return low, _join(split >> form.low_bits, more).to(torch.uint8 if more == 1 else torch.int16)


def _join(parts: torch.Tensor, bits: int) -> torch.Tensor:
    """Return words with part k of (rows, groups, parts, WIDTH) at bit k * bits."""
    joined = parts[:, :, 0].clone()
    for part in range(1, parts.shape[2]):
        joined |= parts[:, :, part] << (part * bits)
    return joined


def _factor(planes: Planes, wide: torch.Tensor, narrow: torch.Tensor | None) -> torch.Tensor:
    """Return what each step of columns is multiplied by, or has added: (rows, steps, 1)."""
    form = planes.format
    spread = wide.float().repeat_interleave(form.scale_columns // form.step_columns, dim=1)
    return (spread if narrow is None else spread * narrow.float()).unsqueeze(-1)
