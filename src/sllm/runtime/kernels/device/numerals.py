"""The part of a word that is a weight, as a float32 that costs no conversion.

A weight's bits are put where a float's mantissa begins, under the exponent of 1: that is
1 + n / reach, exactly, for a shift and one logical operation; two nibbles of a byte share a shift.
Whoever multiplies by it multiplies x by `reach` first, and takes away what the 1 adds.
"""

import triton
import triton.language as tl


@triton.jit
def reach_of(part: tl.constexpr, bits: tl.constexpr):
    """Return what n of a part is divided by."""
    return (
        256.0
        if bits == 8 or (bits == 4 and part % 2 == 0)
        else (16.0 if bits == 4 else (32.0 if bits == 5 else 64.0))
    )


@triton.jit
def move(word, start: tl.constexpr, end: tl.constexpr):
    """Return a word with the bit at `start` moved to `end`."""
    return word << (end - start) if end >= start else word >> (start - end)


@triton.jit
def one_plus(low, high, one, part: tl.constexpr, bits: tl.constexpr):
    """Return 1 + n / reach of a part of each word; `one` is the bits of 1.0."""
    if bits == 8:
        found = move(low, 8 * part, 15) & 0x007F8000
    elif bits == 4:
        mask: tl.constexpr = 0x00780000 if part % 2 else 0x00078000
        found = move(low, 8 * (part // 2), 15) & mask
    elif bits == 5:
        found = (move(low, 4 * part, 18) & 0x003C0000) | (move(high, part, 22) & 0x00400000)
    else:
        found = (move(low, 4 * part, 17) & 0x001E0000) | (move(high, 2 * part, 21) & 0x00600000)
    return (found | one).to(tl.float32, bitcast=True)
