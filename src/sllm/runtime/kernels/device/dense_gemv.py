"""A few tokens times a matrix of floats: bound by reading the matrix once."""

import triton
import triton.language as tl


@triton.jit
def dense_gemv(
    out,
    x,
    weights,
    rows,
    groups,
    groups_each,
    tokens,
    row_stride,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    block_tokens: tl.constexpr,
    even: tl.constexpr,
    stages: tl.constexpr,
):
    """Write the sums over groups_each groups from axis 1 on: out (shares, tokens, rows).

    A group is `width` neighbours: 16 bytes of weights, one load of a thread. As in planar_gemv,
    tensors have all dimensions from their addresses on: (rows, tokens, groups, width).
    """
    share = tl.program_id(1)
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    row = tl.minimum(row, rows - 1).to(tl.int64)[:, None, None, None]
    token = tl.arange(0, block_tokens)[None, :, None, None]
    index = tl.arange(0, width)[None, None, None, :]
    total = tl.zeros((block_rows, block_tokens, block_groups, 1), tl.float32)
    stop = tl.minimum((share + 1) * groups_each, groups)
    for first in tl.range(share * groups_each, stop, block_groups, num_stages=stages):
        group = (first + tl.arange(0, block_groups))[None, None, :, None]
        inside = (group < stop) | even
        seen = inside & ((token < tokens) | (block_tokens == 1))
        column = group * width + index
        some = tl.load(weights + row * row_stride + column, mask=inside, other=0.0)
        given = tl.load(x + token * groups * width + column, mask=seen, other=0.0)
        sums = some.to(tl.float32) * given.to(tl.float32)
        total += tl.sum(sums, axis=3, keep_dims=True)
    at_row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)[:, None]
    at_token = tl.arange(0, block_tokens)[None, :]
    place = (share * tokens + at_token) * rows + at_row
    kept = (at_row < rows) & (at_token < tokens)
    found = tl.sum(tl.sum(total, axis=3), axis=2)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=kept)
