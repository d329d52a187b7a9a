"""The greatest of a row of logits and the first column that has it: parts of rows, then rows.

A logit and its column are one integer, a key: whose key is greater has the greater logit, or the
same one in an earlier column. So a maximum of keys needs no comparison of pairs. What is no number
is greater than all numbers. No key is as small as 0.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow

_LAST_COLUMN = tl.constexpr(2**31 - 1)
_HALF = tl.constexpr(2**31)


@triton.jit
def find_part_peaks(
    keys,
    wide,
    logits,
    row_stride,
    width,
    parts,
    block: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the greatest key of each part of a row: keys (rows, parts).

    wide: the logits in float32, (rows, width), if they are wanted.
    """
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = part * block + tl.arange(0, block)
    inside = column < width
    follow(chained)
    logit = tl.load(logits + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    if wide is not None:
        tl.store(wide + row * width + column, logit, mask=inside)
    key = tl.where(inside, key_of(logit, column), 0)
    tl.store(keys + row * parts + part, tl.max(key, axis=0))


@triton.jit(do_not_specialize=["rows"])
def find_row_peaks(out, keys, rows, parts, block: tl.constexpr, chained: tl.constexpr):
    """Write each row's greatest logit, and the first column that has it: out (2, rows)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, block)
    follow(chained)
    key = tl.max(tl.load(keys + row * parts + part, mask=part < parts, other=0), axis=0)
    tl.store(out + row, logit_of(key).to(tl.float64))
    tl.store(out + rows + row, column_of(key).to(tl.float64))


@triton.jit
def key_of(logit, column):
    """Return the keys of logits, in float32, and their columns."""
    logit = tl.where(logit == 0.0, 0.0, logit)  # Without a sign.
    bits = logit.to(tl.int32, bitcast=True)
    bits = tl.where(logit == logit, bits, 0x7FFFFFFF).to(tl.int64)  # Whose float is no number.
    order = tl.where(bits < 0, -1 - bits, bits + _HALF)
    return order * _HALF + (column ^ _LAST_COLUMN)


@triton.jit
def logit_of(key):
    """Return the logits of keys."""
    order = key // _HALF
    bits = tl.where(order < _HALF, -1 - order, order - _HALF)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def column_of(key):
    """Return the columns of keys."""
    return (key % _HALF ^ _LAST_COLUMN).to(tl.int32)
