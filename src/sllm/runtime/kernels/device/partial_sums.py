"""The second stage of a sum that several programs share: their shares, in order."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow


@triton.jit
def add_shares(out, shares, count, elements, block: tl.constexpr, chained: tl.constexpr):
    """Write the sum of (count, elements) over the first dimension, from 0 on."""
    follow(chained)
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    total = tl.zeros((block,), tl.float32)
    for share in range(count):
        total += tl.load(shares + share * elements + at, mask=inside, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
