"""Attention of one new token per request over its pages, cut along the sequence.

A program takes a chunk of one request's tokens, for all query heads that share a head of keys and
values, which are read once. A second kernel joins the chunks in order.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import expect_rows, follow
from sllm.runtime.kernels.device.fixed_columns import write_fixed


@triton.jit
def attend_chunks(
    sums, maxima, totals, query, keys, values, pages, lengths, scale,
    page_columns, chunks, kv_heads, window,
    sharing: tl.constexpr, width: tl.constexpr, block_width: tl.constexpr,
    block_heads: tl.constexpr, block_tokens: tl.constexpr, page_tokens: tl.constexpr,
    precision: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write the sum, maximum and total of each chunk's softmax, which is not yet divided.

    sums: (requests, heads, chunks, width); maxima, totals without width. `scale` is for powers of
    two. No window is a window of 0.
    """
    request = tl.program_id(0)
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2)
    length = tl.load(lengths + request)  # A step's: no kernel writes it within one, nor pages.
    oldest = tl.maximum(length - window, 0) * (window > 0)
    each = tl.cdiv(tl.cdiv(length - oldest, chunks), block_tokens) * block_tokens
    start = oldest + chunk * each
    stop = tl.minimum(start + each, length)
    if chained:
        _expect(
            keys, values, pages + request * page_columns, start, stop, kv_head, kv_heads,
            width, block_width, block_tokens, page_tokens,
        )  # fmt: skip
    follow(chained)
    head = tl.arange(0, block_heads)
    dimension = tl.arange(0, block_width)[None, :]
    at_head = (request * kv_heads + kv_head) * sharing + head
    kept = (head < sharing)[:, None] & (dimension < width)
    given = tl.load(query + at_head[:, None] * width + dimension, mask=kept, other=0.0)
    highest = tl.full((block_heads,), float("-inf"), tl.float32)
    total = tl.zeros((block_heads,), tl.float32)
    mixed = tl.zeros((block_heads, block_width), tl.float32)
    for first in range(start, stop, block_tokens):
        token = first + tl.arange(0, block_tokens)
        inside = token < stop
        place = _places(pages + request * page_columns, token, inside, page_tokens)
        at = (place[:, None] * kv_heads + kv_head) * width + dimension
        seen = inside[:, None] & (dimension < width)
        key = tl.load(keys + at, mask=seen, other=0.0).to(given.dtype)
        value = tl.load(values + at, mask=seen, other=0.0).to(given.dtype)
        score = tl.dot(given, tl.trans(key), input_precision=precision) * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        share = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(share, axis=1)
        mixed *= fade[:, None]
        mixed = tl.dot(share.to(given.dtype), value, mixed, input_precision=precision)
        highest = higher
    own = at_head * chunks + chunk
    tl.store(maxima + own, highest, mask=head < sharing)
    tl.store(totals + own, total, mask=head < sharing)
    tl.store(sums + own[:, None] * width + dimension, mixed, mask=kept)


@triton.jit
def _expect(
    keys, values, pages, start, stop, kv_head, kv_heads,
    width: tl.constexpr, block_width: tl.constexpr, block_tokens: tl.constexpr,
    page_tokens: tl.constexpr,
):  # fmt: skip
    """Have a chunk's first keys and values brought near while what is before attention ends."""
    token = start + tl.arange(0, block_tokens)
    place = _places(pages, token, token < stop, page_tokens)
    row = (place[:, None] * kv_heads + kv_head) * width
    expect_rows(keys, row, width, block_width)
    expect_rows(values, row, width, block_width)


@triton.jit
def _places(pages, token, inside, page_tokens: tl.constexpr):
    """Return where tokens are in the cache."""
    page = tl.load(pages + token // page_tokens, mask=inside, other=0)
    return page.to(tl.int64) * page_tokens + token % page_tokens


@triton.jit
def join_chunks(
    out, records, sums, maxima, totals, chunks, heads, room,
    width: tl.constexpr, block_width: tl.constexpr, block_chunks: tl.constexpr,
    chained: tl.constexpr,
):  # fmt: skip
    """Write the attention of one head: its chunks, each by its part of the whole softmax.

    records: of what is written, if they are wanted, and zeros from programs after the last head.
    """
    follow(chained)
    request, number = tl.program_id(0), tl.program_id(1)
    head = request * heads + tl.minimum(number, heads - 1)
    chunk = tl.arange(0, block_chunks)
    dimension = tl.arange(0, block_width)[None, :]
    there = chunk < chunks
    place = head * chunks + chunk
    highest = tl.load(maxima + place, mask=there, other=float("-inf"))
    total = tl.load(totals + place, mask=there, other=0.0)
    seen = there[:, None] & (dimension < width)
    mixed = tl.load(sums + place[:, None] * width + dimension, mask=seen, other=0.0)
    part = tl.exp2(highest - tl.max(highest, axis=0))
    total = tl.sum(part * total, axis=0)
    found = tl.sum(part[:, None] * mixed, axis=0)[None, :] / total
    found = tl.where(number < heads, found, 0.0).to(out.dtype.element_ty)
    tl.store(
        out + head * width + dimension, found, mask=dimension < tl.where(number < heads, width, 0)
    )
    if records is not None:
        first = number * (width // 32)
        write_fixed(records, tl.reshape(found, (width,)), request, first, room, width // 32)
