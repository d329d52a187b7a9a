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
    sums: tl.constexpr,
    shifted: tl.constexpr,
    chained: tl.constexpr,
):
    """Write x / rms(x) * (weight + offset) of a row, or of x + added, which `total` gets.

    Rounds where the plain formulation does. records: of what is written, if they are wanted.
    """
    follow(chained)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    at = row * width + column
    given = tl.load(x + at, mask=inside, other=0.0)
    if sums:
        more = tl.load(added + at, mask=inside, other=0.0)
        given = (given.to(tl.float32) + more.to(tl.float32)).to(given.dtype)
        tl.store(total + at, given, mask=inside)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    found = normalised(
        given, scale, epsilon, offset, tl.sum(squares(given), axis=0), width, shifted
    )
    found = found.to(out.dtype.element_ty)
    tl.store(out + at, found, mask=inside)
    if records is not None:
        write_fixed(records, found, row, 0, room, block // 32)


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
