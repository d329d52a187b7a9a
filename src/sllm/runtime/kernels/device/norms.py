"""RMSNorm of rows, and the sum before it: each row is read once and stays in registers."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.fixed_columns import write_fixed


@triton.jit
def normalise_rows(
    out,
    total,
    records,
    x,
    added,
    weight,
    epsilon,
    offset,
    room,
    width: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    sums: tl.constexpr,
    shifted: tl.constexpr,
    chained: tl.constexpr,
):
    """Write x / rms(x) * (weight + offset) of a row, or of x + added, which `total` gets.

    Each program has the sum of a whole row's squares, and writes a part of it. Rounds where the
    plain formulation does. records: of what is written, if they are wanted.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * part
    column = first + tl.arange(0, part)
    inside = column < width
    scale = tl.load(weight + column, mask=inside, other=0.0)  # No kernel writes weights.
    follow(chained)
    given = _summed(x, added, row * width, tl.arange(0, block), width, sums)
    own = given if part == block else _summed(x, added, row * width, column, width, sums)
    at = row * width + column
    if sums:
        tl.store(total + at, own, mask=inside)
    found = normalised(own, scale, epsilon, offset, tl.sum(squares(given), axis=0), width, shifted)
    found = found.to(out.dtype.element_ty)
    tl.store(out + at, found, mask=inside)
    if records is not None:
        write_fixed(records, found, row, first // 32, room, part // 32)


@triton.jit
def _summed(x, added, row, column, width: tl.constexpr, sums: tl.constexpr):
    """Return columns of x, or of x + added; zeros after the last."""
    found = tl.load(x + row + column, mask=column < width, other=0.0)
    if sums:
        more = tl.load(added + row + column, mask=column < width, other=0.0)
        found = (found.to(tl.float32) + more.to(tl.float32)).to(found.dtype)
    return found


@triton.jit
def squares(values):
    """Return the squares in float32."""
    wide = values.to(tl.float32)
    return wide * wide


@triton.jit
def normalised(values, weight, epsilon, offset, total, width: tl.constexpr, shifted: tl.constexpr):
    """Return values, whose squares sum to a total over a width, normalised: in float32."""
    wide = values.to(tl.float32) * tl.rsqrt(total / width + epsilon)
    if shifted:
        found = (wide * (weight.to(tl.float32) + offset)).to(values.dtype)
    else:
        found = (wide.to(values.dtype).to(tl.float32) * weight.to(tl.float32)).to(values.dtype)
    return found.to(tl.float32)
