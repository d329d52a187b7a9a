"""The rotation of tokens at their positions: cosines and sines, as exact as PyTorch's."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow


@triton.jit
def turn_positions(
    cos,
    sin,
    positions,
    each,
    scale,
    half,
    block_half: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the cosines and sines of one token, times a scale: (tokens, half).

    each: the angle of each pair of dimensions from one position to the next.
    """
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, block_half)
    inside = pair < half
    turn = tl.load(each + pair, mask=inside, other=0.0)  # No kernel writes frequencies.
    follow(chained)
    angle = tl.load(positions + token).to(tl.float32) * turn
    at = token * half + pair
    tl.store(cos + at, (tl.cos(angle) * scale).to(cos.dtype.element_ty), mask=inside)
    tl.store(sin + at, (tl.sin(angle) * scale).to(sin.dtype.element_ty), mask=inside)
