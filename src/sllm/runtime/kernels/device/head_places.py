"""Heads on their way to attention: normalised, rotated, and keys and values put into the cache."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.norms import normalised, squares


@triton.jit
def place_one_head(
    out, keys, values, query, key, value, query_norm, key_norm, cos, sin, places,
    query_stride, head_stride, key_stride, value_stride, heads, kv_heads, epsilon, offset,
    width: tl.constexpr, block_width: tl.constexpr, half: tl.constexpr, block_half: tl.constexpr,
    interleaved: tl.constexpr, normed: tl.constexpr, shifted: tl.constexpr,
    chained: tl.constexpr,
):  # fmt: skip
    """A program has one head of one token: of the queries, then the keys, then the values.

    out: queries (tokens, heads, width). keys, values: (places, kv_heads, width). `places` says
    where each token goes; a negative place is none. cos, sin: (tokens, half).
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    place = tl.load(places + token).to(tl.int64)  # A step's: no kernel writes it within one.
    follow(chained)
    angle = token * half
    if head < heads:
        rotate_head(
            out + (token * heads + head) * width, query + token * query_stride + head * head_stride,
            query_norm, cos + angle, sin + angle, epsilon, offset,
            width, block_width, half, block_half, interleaved, normed, shifted,
        )  # fmt: skip
    elif (head < heads + kv_heads) & (place >= 0):
        kv_head = head - heads
        rotate_head(
            keys + (place * kv_heads + kv_head) * width, key + token * key_stride + kv_head * width,
            key_norm, cos + angle, sin + angle, epsilon, offset,
            width, block_width, half, block_half, interleaved, normed, shifted,
        )  # fmt: skip
    elif place >= 0:
        kv_head = head - heads - kv_heads
        column = tl.arange(0, block_width)
        kept = column < width
        found = tl.load(value + token * value_stride + kv_head * width + column, mask=kept)
        target = values + (place * kv_heads + kv_head) * width + column
        tl.store(target, found.to(values.dtype.element_ty), mask=kept)


@triton.jit
def rotate_head(
    target, source, norm, cos, sin, epsilon, offset,
    width: tl.constexpr, block_width: tl.constexpr, half: tl.constexpr, block_half: tl.constexpr,
    interleaved: tl.constexpr, normed: tl.constexpr, shifted: tl.constexpr,
):  # fmt: skip
    """Write one head, normalised and rotated; dimensions beyond the rotated ones are not turned."""
    pair = tl.arange(0, block_half)
    inside = pair < half
    first_at = pair * 2 if interleaved else pair
    second_at = first_at + 1 if interleaved else pair + half
    column = tl.arange(0, block_width)
    whole = tl.load(source + column, mask=column < width, other=0.0)
    first = tl.load(source + first_at, mask=inside, other=0.0)
    second = tl.load(source + second_at, mask=inside, other=0.0)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    rest = whole.to(tl.float32)
    if normed:
        total = tl.sum(squares(whole), axis=0)
        by = tl.load(norm + first_at, mask=inside, other=0.0)
        wide_first = normalised(first, by, epsilon, offset, total, width, shifted)
        by = tl.load(norm + second_at, mask=inside, other=0.0)
        wide_second = normalised(second, by, epsilon, offset, total, width, shifted)
        by = tl.load(norm + column, mask=column < width, other=0.0)
        rest = normalised(whole, by, epsilon, offset, total, width, shifted)
    c = tl.load(cos + pair, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + pair, mask=inside, other=0.0).to(tl.float32)
    kind = target.dtype.element_ty
    turned = (wide_first * c - wide_second * s).to(first.dtype)
    tl.store(target + first_at, turned.to(kind), mask=inside)
    turned = (wide_second * c + wide_first * s).to(first.dtype)
    tl.store(target + second_at, turned.to(kind), mask=inside)
    if 2 * half < width:
        kept = (column >= 2 * half) & (column < width)
        tl.store(target + column, rest.to(kind), mask=kept)
