"""One token times the planes of each expert that was chosen for it, all of a layer in a launch.

Experts lie in slots that are alike: planes are given where the first slot has them, and a pair of
token and expert finds its own `slot * slot_bytes` further. A pair whose slot is -1 is left out: its
expert is not there yet, and another launch computes it. One whose slot is -2 has no expert.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.planar_gemv import sum_rows


@triton.jit
def sum_slot_rows(
    x, low, high, scales, offsets, steps, floors, slot, slot_bytes, first, rows, groups, one,
    bits: tl.constexpr, zero: tl.constexpr, span: tl.constexpr, halves: tl.constexpr,
    block_rows: tl.constexpr, block_groups: tl.constexpr, even: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    """Return the sums of some rows of the matrix in a slot: (rows, 1)."""
    low += slot * (slot_bytes // 4)
    scales += slot * (slot_bytes // (scales.dtype.element_ty.primitive_bitwidth // 8))
    if high is not None:
        high += slot * (slot_bytes // (high.dtype.element_ty.primitive_bitwidth // 8))
    if offsets is not None:
        offsets += slot * (slot_bytes // (offsets.dtype.element_ty.primitive_bitwidth // 8))
    if steps is not None:
        steps += slot * slot_bytes
    if floors is not None:
        floors += slot * slot_bytes
    return sum_rows(
        x, low, high, scales, offsets, steps, floors, first, rows, groups, 0, groups, 1, one,
        bits, zero, span, halves, block_rows, block_groups, 1, even, stages,
    )  # fmt: skip


@triton.jit
def gate_up_chosen(
    out, x, slots,
    gate_low, gate_high, gate_scales, gate_offsets, gate_steps, gate_floors,
    up_low, up_high, up_scales, up_offsets, up_steps, up_floors,
    slot_bytes, rows, groups, chosen, one,
    bits: tl.constexpr, zero: tl.constexpr, span: tl.constexpr, halves: tl.constexpr,
    up_bits: tl.constexpr, up_zero: tl.constexpr, up_span: tl.constexpr,
    up_halves: tl.constexpr,
    block_rows: tl.constexpr, block_groups: tl.constexpr, even: tl.constexpr,
    stages: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write silu(gate) * up of each pair: out (pairs, rows); x has a row for `chosen` pairs."""
    follow(chained)
    pair = tl.program_id(1)
    slot = tl.load(slots + pair).to(tl.int64)
    if slot >= 0:
        first = tl.program_id(0) * block_rows
        parts: tl.constexpr = 16 if bits == 8 else 32
        own = x + (pair // chosen) * groups * parts
        gate = sum_slot_rows(
            own, gate_low, gate_high, gate_scales, gate_offsets, gate_steps, gate_floors,
            slot, slot_bytes, first, rows, groups, one, bits, zero, span, halves,
            block_rows, block_groups, even, stages,
        )  # fmt: skip
        up = sum_slot_rows(
            own, up_low, up_high, up_scales, up_offsets, up_steps, up_floors,
            slot, slot_bytes, first, rows, groups, one, up_bits, up_zero, up_span, up_halves,
            block_rows, block_groups, even, stages,
        )  # fmt: skip
        small = tl.exp(-tl.abs(gate))  # Never overflows.
        found = gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small) * up
        row = first + tl.arange(0, block_rows)[:, None]
        place = pair.to(tl.int64) * rows + row
        tl.store(out + place, found.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def down_chosen(
    out, x, slots, low, high, scales, offsets, steps, floors, slot_bytes, rows, groups, one,
    bits: tl.constexpr, zero: tl.constexpr, span: tl.constexpr, halves: tl.constexpr,
    block_rows: tl.constexpr, block_groups: tl.constexpr, even: tl.constexpr,
    stages: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write the product of each pair: out (pairs, rows), x (pairs, columns); 0 for -2."""
    follow(chained)
    pair = tl.program_id(1)
    slot = tl.load(slots + pair).to(tl.int64)
    if slot >= 0:
        first = tl.program_id(0) * block_rows
        parts: tl.constexpr = 16 if bits == 8 else 32
        found = sum_slot_rows(
            x + pair * groups * parts, low, high, scales, offsets, steps, floors,
            slot, slot_bytes, first, rows, groups, one, bits, zero, span, halves,
            block_rows, block_groups, even, stages,
        )  # fmt: skip
        row = first + tl.arange(0, block_rows)[:, None]
        place = pair.to(tl.int64) * rows + row
        tl.store(out + place, found.to(out.dtype.element_ty), mask=row < rows)
    elif slot < -1:
        row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
        nothing = tl.zeros((block_rows,), out.dtype.element_ty)
        tl.store(out + pair.to(tl.int64) * rows + row, nothing, mask=row < rows)


@triton.jit
def add_chosen(out, found, shares, columns, chosen, block: tl.constexpr, chained: tl.constexpr):
    """Write each token's sum of its pairs by their shares, in order: out (tokens, columns)."""
    follow(chained)
    token = tl.program_id(1)
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < columns
    total = tl.zeros((block,), tl.float32)
    for rank in range(chosen):
        pair = token * chosen + rank
        share = tl.load(shares + pair).to(tl.float32)
        place = pair.to(tl.int64) * columns + column
        total += share * tl.load(found + place, mask=inside, other=0.0).to(tl.float32)
    place = token.to(tl.int64) * columns + column
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
