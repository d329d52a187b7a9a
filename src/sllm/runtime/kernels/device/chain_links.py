"""Where a kernel of a chain lets the one after it begin, and waits for the one before it."""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # Triton before 3.4.
    gdc_launch_dependents = gdc_wait = None

CAN_CHAIN = gdc_wait is not None
_EXPECT = tl.constexpr("{\nprefetch.global.L2 [$1];\nmov.b32 $0, 0;\n}")
_LINE_BITS = tl.constexpr(1024)


@triton.jit
def follow(chained: tl.constexpr):
    """Let the next kernel begin, and wait until all that earlier ones wrote is there."""
    if chained:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def expect_rows(memory, row, width: tl.constexpr, block_width: tl.constexpr):
    """Have rows, (count, 1), brought into the device's cache, where writes meanwhile count too."""
    line: tl.constexpr = _LINE_BITS // memory.dtype.element_ty.primitive_bitwidth
    lines: tl.constexpr = (block_width + line - 1) // line
    column = tl.minimum(tl.arange(0, lines)[None, :] * line, width - 1)
    tl.inline_asm_elementwise(
        _EXPECT,
        "=r,l",
        [(memory + row + column).to(tl.int64, bitcast=True)],
        tl.int32,
        is_pure=False,
        pack=1,
    )
