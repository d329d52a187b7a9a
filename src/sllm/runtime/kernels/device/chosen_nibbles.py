"""One token of 16 bits times the nibbles of each expert that was chosen for it, on matrix units.

As `chosen_experts`, with the lanes of `planar_mma`: a program has sixteen rows of one pair of token
and expert. Weights may have come into their slots just before, so all is read after the wait.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.planar_mma import sum_groups


@triton.jit
def sum_slot_nibbles(
    x, low, scales, offsets, steps, floors, slot, slot_words, rows, groups,
    zero: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr,
    warps: tl.constexpr, even: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Return the sums of sixteen rows of the matrix in a slot: (8, 2), of rows and rows + 8."""
    per_word: tl.constexpr = 1 if span == 1 else 2
    at = slot * slot_words
    low += at
    scales += at * per_word
    if offsets is not None:
        offsets += at * per_word
    if steps is not None:
        steps += at * 2
        floors += at * 2
    first_row = tl.program_id(0) * 16
    lane = tl.arange(0, 32 * warps)[:, None]
    g, q = lane % 32 // 4, lane % 4
    row = tl.minimum(first_row + g, rows - 1).to(tl.int64)
    below = tl.minimum(first_row + g + 8, rows - 1).to(tl.int64)
    own = (row, below, g, q, tl.arange(0, 4)[None, :])
    total = sum_groups(
        x, low, scales, offsets, steps, floors, own, lane // 32 * 4, groups, 0, groups, 1,
        zero, span, scaled, half, 4 * warps, even, ahead,
    )  # fmt: skip
    found = tl.reshape(total, (warps, 8, 2, 2, 2, 2))  # warp, g, token, two groups, row, group
    # The second token is zeros.
    return tl.sum(tl.sum(tl.sum(tl.sum(found, axis=5), axis=3), axis=0), axis=1)


@triton.jit
def put_rows(out, found, pair, rows):
    """Write what sixteen rows are, to a pair's row of out."""
    row = tl.program_id(0) * 16 + tl.arange(0, 8)[:, None] + 8 * tl.arange(0, 2)[None, :]
    place = pair.to(tl.int64) * rows + row
    tl.store(out + place, found.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def gate_up_nibbles(
    out, x, slots,
    gate_low, gate_scales, gate_offsets, gate_steps, gate_floors,
    up_low, up_scales, up_offsets, up_steps, up_floors,
    slot_words, rows, groups, chosen,
    zero: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr,
    up_zero: tl.constexpr, up_span: tl.constexpr, up_scaled: tl.constexpr,
    half: tl.constexpr, warps: tl.constexpr, even: tl.constexpr, ahead: tl.constexpr,
    chained: tl.constexpr,
):  # fmt: skip
    """Write silu(gate) * up of each pair: out (pairs, rows); x has a row for `chosen` pairs."""
    follow(chained)
    pair = tl.program_id(1)
    slot = tl.load(slots + pair).to(tl.int64)
    if slot >= 0:
        own = x + (pair // chosen) * groups * 16
        gate = sum_slot_nibbles(
            own, gate_low, gate_scales, gate_offsets, gate_steps, gate_floors, slot, slot_words,
            rows, groups, zero, span, scaled, half, warps, even, ahead,
        )  # fmt: skip
        up = sum_slot_nibbles(
            own, up_low, up_scales, up_offsets, up_steps, up_floors, slot, slot_words,
            rows, groups, up_zero, up_span, up_scaled, half, warps, even, ahead,
        )  # fmt: skip
        small = tl.exp(-tl.abs(gate))  # Never overflows.
        put_rows(out, gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small) * up, pair, rows)


@triton.jit
def down_nibbles(
    out, x, slots, low, scales, offsets, steps, floors, slot_words, rows, groups,
    zero: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr,
    warps: tl.constexpr, even: tl.constexpr, ahead: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write the product of each pair: out (pairs, rows), x (pairs, columns); 0 for -2."""
    follow(chained)
    pair = tl.program_id(1)
    slot = tl.load(slots + pair).to(tl.int64)
    if slot >= 0:
        found = sum_slot_nibbles(
            x + pair * groups * 16, low, scales, offsets, steps, floors, slot, slot_words,
            rows, groups, zero, span, scaled, half, warps, even, ahead,
        )  # fmt: skip
        put_rows(out, found, pair, rows)
    elif slot < -1:
        put_rows(out, tl.zeros((8, 2), tl.float32), pair, rows)
