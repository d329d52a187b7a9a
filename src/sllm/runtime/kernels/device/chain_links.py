"""Where a kernel of a chain lets the one after it begin, and waits for the one before it."""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # Triton before 3.4.
    gdc_launch_dependents = gdc_wait = None

CAN_CHAIN = gdc_wait is not None


@triton.jit
def follow(chained: tl.constexpr):
    """Let the next kernel begin, and wait until all that earlier ones wrote is there."""
    if chained:
        gdc_launch_dependents()
        gdc_wait()
