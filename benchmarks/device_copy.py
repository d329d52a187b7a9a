"""A copy by a kernel: what the memory allows where the copy engine falls short of it."""

import triton
import triton.language as tl


@triton.jit
def copy_floats(out, x, count, block: tl.constexpr):
    """Copy `count` floats, `block` of them in a program."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(out + at, tl.load(x + at, mask=at < count), mask=at < count)
