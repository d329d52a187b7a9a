"""From blocks as GGUF stores them to planes: bytes are moved about, and no number is computed."""

import triton
import triton.language as tl


@triton.jit
def lay_out_blocks(
    raw,
    low,
    high,
    scales,
    offsets,
    steps,
    floors,
    total,
    scheme: tl.constexpr,
    block_groups: tl.constexpr,
):
    """Write the planes of some groups of 4 words; `total` groups follow one another in all rows.

    Scales and offsets are the bits of float16.
    """
    group = tl.program_id(0).to(tl.int64) * block_groups + tl.arange(0, block_groups)[:, None]
    word = tl.arange(0, 4)[None, :]
    each = group < total
    inside = each & (word < 4)
    place = group * 4 + word
    if scheme == "Q4_0" or scheme == "Q4_1":
        nibbles: tl.constexpr = 2 if scheme == "Q4_0" else 4
        block = raw + group * (16 + nibbles)
        tl.store(low + place, _both_nibbles(block + nibbles + word, inside), mask=inside)
        tl.store(scales + group, _half(block, each), mask=each)
        if scheme == "Q4_1":
            tl.store(offsets + group, _half(block + 2, each), mask=each)
    elif scheme == "Q5_0" or scheme == "Q5_1":
        fifths: tl.constexpr = 2 if scheme == "Q5_0" else 4
        block = raw + group * (20 + fifths)
        tl.store(low + place, _both_nibbles(block + fifths + 4 + word, inside), mask=inside)
        more = _fifth_bits(block + fifths, word, inside)
        tl.store(high + place, more.to(tl.uint8), mask=inside)
        tl.store(scales + group, _half(block, each), mask=each)
        if scheme == "Q5_1":
            tl.store(offsets + group, _half(block + 2, each), mask=each)
    elif scheme == "Q8_0":
        block, inner = raw + group // 2 * 34, group % 2
        tl.store(low + place, _bytes(block + 2 + inner * 16 + word, inside), mask=inside)
        first = each & (inner == 0)
        tl.store(scales + group // 2, _half(block, first), mask=first)
    elif scheme == "Q6_K":
        _lay_out_six_bits(raw, low, high, scales, steps, group, word, each)
    else:
        _lay_out_with_floors(
            raw, low, high, scales, offsets, steps, floors, group, word, each, scheme,
        )  # fmt: skip


@triton.jit
def _lay_out_six_bits(raw, low, high, scales, steps, group, word, each):
    """Write planes of Q6_K: a signed scale for each half of a group."""
    inside, place = each & (word < 4), group * 4 + word
    block, inner = raw + group // 8 * 210, group % 8
    half, quarter = inner // 4, inner % 4
    at = block + half * 64 + quarter % 2 * 32 + word
    tl.store(low + place, _bits(at, quarter // 2 * 4, 4, inside), mask=inside)
    more = _bits(block + 128 + half * 32 + word, quarter * 2, 2, inside)
    tl.store(high + place, more.to(tl.int16), mask=inside)
    step = tl.arange(0, 2)[None, :]
    both = each & (step < 2)
    found = tl.load(block + 192 + inner * 2 + step, mask=both, other=0)
    tl.store(steps + group * 2 + step, found.to(tl.int8, bitcast=True), mask=both)
    first = each & (inner == 0)
    tl.store(scales + group // 8, _half(block + 208, first), mask=first)


@triton.jit
def _lay_out_with_floors(raw, low, high, scales, offsets, steps, floors, group, word, each,
                         scheme: tl.constexpr):  # fmt: skip
    """Write planes of Q4_K and Q5_K; what is added to weights is -dmin * floor."""
    nibbles: tl.constexpr = 16 if scheme == "Q4_K" else 48
    inside, place = each & (word < 4), group * 4 + word
    block, inner = raw + group // 8 * (128 + nibbles), group % 8
    at = block + nibbles + inner // 2 * 32 + word
    tl.store(low + place, _bits(at, inner % 2 * 4, 4, inside), mask=inside)
    if scheme == "Q5_K":
        more = _bits(block + 16 + word, inner, 1, inside)
        tl.store(high + place, more.to(tl.uint8), mask=inside)
    _store_six_bits(block + 4, steps, floors, group, inner, each)
    first = each & (inner == 0)
    tl.store(scales + group // 8, _half(block, first), mask=first)
    tl.store(offsets + group // 8, _half(block + 2, first) ^ -32768, mask=first)


@triton.jit
def _both_nibbles(at, inside):
    """Return words of the low nibbles of every fourth byte of 16, then of the high ones."""
    found = tl.zeros(at.shape, tl.int32)
    for part in tl.static_range(4):
        byte = tl.load(at + part * 4, mask=inside, other=0).to(tl.int32)
        found |= ((byte & 15) << (part * 4)) | ((byte >> 4) << (part * 4 + 16))
    return found


@triton.jit
def _fifth_bits(at, word, inside):
    """Return words of every fourth bit of four bytes, from the word's own on."""
    found = tl.zeros((at + word).shape, tl.int32)
    for part in tl.static_range(8):
        byte = tl.load(at + part // 2 + word * 0, mask=inside, other=0).to(tl.int32)
        found |= ((byte >> (part % 2 * 4 + word)) & 1) << part
    return found


@triton.jit
def _bytes(at, inside):
    """Return words of every fourth byte of 16, which is signed, from 128 on."""
    found = tl.zeros(at.shape, tl.int32)
    for part in tl.static_range(4):
        byte = tl.load(at + part * 4, mask=inside, other=0).to(tl.int32)
        found |= (byte ^ 128) << (part * 8)
    return found


@triton.jit
def _bits(at, shift, bits: tl.constexpr, inside):
    """Return words of some bits of every fourth byte of 32."""
    found = tl.zeros(at.shape, tl.int32)
    for part in tl.static_range(8):
        byte = tl.load(at + part * 4, mask=inside, other=0).to(tl.int32)
        found |= ((byte >> shift) & ((1 << bits) - 1)) << (part * bits)
    return found


@triton.jit
def _half(at, inside):
    """Return the bits of a float16 that may begin anywhere."""
    low = tl.load(at, mask=inside, other=0).to(tl.int32)
    return (low | tl.load(at + 1, mask=inside, other=0).to(tl.int32) << 8).to(tl.int16)


@triton.jit
def _store_six_bits(at, steps, floors, group, inner, inside):
    """Write the scale and the floor of a group, out of the 12 bytes for eight of them."""
    own = inner % 4
    first = tl.load(at + own, mask=inside, other=0)
    second = tl.load(at + 4 + own, mask=inside, other=0)
    third = tl.load(at + 8 + own, mask=inside, other=0)
    step = tl.where(inner < 4, first & 63, (third & 15) | ((first >> 2) & 48))
    floor = tl.where(inner < 4, second & 63, (third >> 4) | ((second >> 2) & 48))
    tl.store(steps + group, step, mask=inside)
    tl.store(floors + group, floor, mask=inside)
