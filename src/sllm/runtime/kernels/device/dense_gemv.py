"""One token times a matrix of floats: bound by reading the matrix once."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow


@triton.jit
def dense_gemv(
    out,
    x,
    weights,
    rows,
    groups,
    groups_each,
    row_stride,
    width: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    even: tl.constexpr,
    stages: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the sums over groups_each groups from axis 1 on: out (shares, rows).

    A group is `width` neighbours: 16 bytes of weights, one load of a thread. As in planar_gemv,
    tensors have all dimensions from their addresses on: (rows, groups, width).
    """
    follow(chained)
    share = tl.program_id(1)
    at_row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    row = tl.minimum(at_row, rows - 1).to(tl.int64)[:, None, None]
    index = tl.arange(0, width)[None, None, :]
    total = tl.zeros((block_rows, block_groups, 1), tl.float32)
    stop = tl.minimum((share + 1) * groups_each, groups)
    for first in tl.range(share * groups_each, stop, block_groups, num_stages=stages):
        group = (first + tl.arange(0, block_groups))[None, :, None]
        inside = (group < stop) | even
        column = group * width + index
        some = tl.load(weights + row * row_stride + column, mask=inside, other=0.0)
        given = tl.load(x + column, mask=inside, other=0.0)
        sums = some.to(tl.float32) * given.to(tl.float32)
        total += tl.sum(sums, axis=2, keep_dims=True)
    found = tl.sum(tl.sum(total, axis=2), axis=1)
    tl.store(out + share * rows + at_row, found.to(out.dtype.element_ty), mask=at_row < rows)
