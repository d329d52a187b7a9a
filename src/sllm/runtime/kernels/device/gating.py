"""What comes between the products of a gated MLP."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.fixed_columns import write_fixed


@triton.jit
def gate_columns(
    out, records, gate, up, gate_stride, up_stride, width, room,
    block: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write silu(gate) * up of some columns of a row; rounds where the plain formulation does.

    records: of what is written, if they are wanted, and zeros after them.
    """
    follow(chained)
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < width
    given = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    more = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    wide = given.to(tl.float32)
    opened = (wide / (1.0 + tl.exp(-wide))).to(given.dtype)
    found = (opened.to(tl.float32) * more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * width + column, found, mask=inside)
    if records is not None:
        write_fixed(records, found, row, tl.program_id(0) * (block // 32), room, block // 32)
