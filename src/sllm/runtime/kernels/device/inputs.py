"""Numbers of the host's, with tokens that are on the device in the place of the first ones."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens", "count"])
def bring_numbers(target, source, tokens, count, total, block: tl.constexpr):
    """Write so many numbers in all, of which the first ones are tokens."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    number = tl.load(source + place, mask=(place >= count) & (place < total), other=0)
    token = tl.load(tokens + place, mask=place < count, other=0).to(tl.int32)
    tl.store(target + place, tl.where(place < count, token, number), mask=place < total)
