"""Where a kernel of a chain waits for the one before it, and lets the one after it begin."""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # Triton before 3.4.
    gdc_launch_dependents = gdc_wait = None

CAN_CHAIN = gdc_wait is not None


@triton.jit
def follow(chained: tl.constexpr):
    """Wait until all that earlier kernels wrote is there; then let the next one begin."""
    if chained:
        gdc_wait()
        gdc_launch_dependents()
