"""A token for each row of logits: weights of parts and their greatest keys, then one of a row.

A weight is exp((logit - peak) / temperature), of which a token's probability is its part of all.
Keys are those of peaks: the greatest ones of a row are its likeliest tokens, and of equals those
of the lowest ids.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.peaks import column_of, key_of, logit_of

CAN_DRAW = hasattr(tl, "topk")
_NO_COLUMN = tl.constexpr(2**31 - 1)
_INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["rows"])
def weigh_parts(
    tops,
    sums,
    logits,
    peaks,
    asked,
    rows,
    row_stride,
    width,
    parts,
    block: tl.constexpr,
    kept: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the sum of each part's weights, (rows, parts), and its greatest keys, if they count.

    asked: temperature, top-k, top-p, min-p and a point of each row, (5, rows), in float64.
    """
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = part * block + tl.arange(0, block)
    inside = column < width
    follow(chained)
    temperature = tl.load(asked + row)
    peak = tl.load(peaks + row)
    if (temperature > 0) & (tl.abs(peak) < _INFINITY):
        logit = tl.load(logits + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.exp((logit.to(tl.float64) - peak) / temperature)
        weight = tl.where(inside, weight, 0.0)
        is_list = (tl.load(asked + rows + row) > 0) | (tl.load(asked + 2 * rows + row) < 1)
        if is_list:
            key = tl.where(inside, key_of(logit, column), 0)
            place = (row * parts + part) * kept + tl.arange(0, kept)
            tl.store(tops + place, tl.topk(key, kept))
        else:
            weight = tl.where(weight < tl.load(asked + 3 * rows + row), 0.0, weight)
        tl.store(sums + row * parts + part, tl.sum(weight, axis=0))


@triton.jit(do_not_specialize=["rows"])
def draw_rows(
    out,
    tops,
    sums,
    logits,
    peaks,
    asked,
    rows,
    row_stride,
    width,
    parts,
    block: tl.constexpr,
    part_block: tl.constexpr,
    kept: tl.constexpr,
    chained: tl.constexpr,
):
    """Write each row's peak, the token that is drawn, and whether it is: out (4, rows).

    Where it cannot be told from the greatest keys of the row, the peak's token is in its place.
    """
    row = tl.program_id(0).to(tl.int64)
    follow(chained)
    peak = tl.load(peaks + row)
    likeliest = tl.load(peaks + rows + row).to(tl.int32)
    temperature = tl.load(asked + row)
    top_k = tl.load(asked + rows + row).to(tl.int32)
    top_p = tl.load(asked + 2 * rows + row)
    min_p = tl.load(asked + 3 * rows + row)
    point = tl.load(asked + 4 * rows + row)
    part = tl.arange(0, part_block)
    token = likeliest
    if (temperature > 0) & (tl.abs(peak) < _INFINITY):
        of_parts = tl.load(sums + row * parts + part, mask=part < parts, other=0.0)
        if (top_k > 0) | (top_p < 1):
            token = _draw_listed(
                tops + row * parts * kept,
                parts * kept,
                tl.sum(of_parts, axis=0),
                peak,
                temperature,
                top_k,
                top_p,
                min_p,
                point,
                part_block * kept,
                kept,
            )
        else:
            token = _draw_any(
                logits + row * row_stride, of_parts, width, peak, temperature, min_p, point, block
            )
    is_drawn = token != _NO_COLUMN
    tl.store(out + row, peak)
    tl.store(out + rows + row, likeliest.to(tl.float64))
    tl.store(out + 2 * rows + row, tl.where(is_drawn, token, likeliest).to(tl.float64))
    tl.store(out + 3 * rows + row, is_drawn.to(tl.float64))


@triton.jit
def _draw_listed(
    tops,
    count,
    total,
    peak,
    temperature,
    top_k,
    top_p,
    min_p,
    point,
    block: tl.constexpr,
    kept: tl.constexpr,
):
    """Return one of the greatest keys' tokens; none if those that top-p leaves may be more."""
    slot = tl.arange(0, block)
    key = tl.topk(tl.load(tops + slot, mask=slot < count, other=0), kept)
    column = column_of(key)
    place = tl.arange(0, kept)
    weight = tl.exp((logit_of(key).to(tl.float64) - peak) / temperature)
    weight = tl.where(key > 0, weight, 0.0)
    sums = tl.sum(tl.where(place[None, :] <= place[:, None], weight[None, :], 0.0), axis=1)
    limit = tl.where(top_k > 0, top_k, _NO_COLUMN)
    whole = tl.where(top_k > 0, tl.max(tl.where(place < limit, sums, 0.0), axis=0), total)
    enough = tl.sum((sums < top_p * whole).to(tl.int32), axis=0) + 1
    left = tl.where(top_p < 1, tl.minimum(enough, limit), limit)
    weight = tl.where((place < left) & (weight >= min_p), weight, 0.0)
    sums = tl.sum(tl.where(column[None, :] <= column[:, None], weight[None, :], 0.0), axis=1)
    beyond = (weight > 0) & (sums > tl.max(sums, axis=0) * point)
    token = tl.min(tl.where(beyond, column, _NO_COLUMN), axis=0)
    return tl.where(left > kept, _NO_COLUMN, token)


@triton.jit
def _draw_any(logits, of_parts, width, peak, temperature, min_p, point, block: tl.constexpr):
    """Return one of all tokens; none where rounding leaves it open."""
    sums = tl.cumsum(of_parts, axis=0)
    target = tl.max(sums, axis=0) * point
    before = sums <= target
    chosen = tl.sum(before.to(tl.int32), axis=0)
    column = chosen * block + tl.arange(0, block)
    inside = column < width
    logit = tl.load(logits + column, mask=inside, other=0.0).to(tl.float64)
    weight = tl.exp((logit - peak) / temperature)
    weight = tl.where(inside & (weight >= min_p), weight, 0.0)
    within = tl.max(tl.where(before, sums, 0.0), axis=0) + tl.cumsum(weight, axis=0)
    return tl.min(tl.where((weight > 0) & (within > target), column, _NO_COLUMN), axis=0)
