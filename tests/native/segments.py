"""Segments for tests: weights as models have them, coded, decoded and spoilt."""

from __future__ import annotations

import ctypes
import random
import struct

from sllm_store import native

HEADER_BYTES = 768


def encode(raw: bytes) -> bytes | None:
    """Return the coded segment, or None where coding does not pay."""
    memory = ctypes.create_string_buffer(raw, max(len(raw), 1))
    stored = ctypes.create_string_buffer(max(len(raw), 1))
    piece = (ctypes.addressof(memory), len(raw), ctypes.addressof(stored))
    (size,) = native.encode_segments_into([piece], threads=1, control=native.Control())
    return stored.raw[:size] if size else None


def coded(raw: bytes) -> bytes:
    """Return the coded segment of bytes that are worth coding."""
    stored = encode(raw)
    assert stored is not None
    return stored


def decode(stored: bytes, raw_size: int) -> bytes:
    """Decode between guards, which must survive whatever is decoded."""
    guard = b"\xa5" * 64
    source = ctypes.create_string_buffer(stored, max(len(stored), 1))
    memory = ctypes.create_string_buffer(guard + bytes(raw_size) + guard, raw_size + 128)
    start = ctypes.addressof(memory)
    try:
        native.decode_segment(ctypes.addressof(source), len(stored), start + 64, raw_size)
    finally:
        assert memory.raw[:64] == guard
        assert memory.raw[64 + raw_size :] == guard
    return memory.raw[64 : 64 + raw_size]


def bfloat16(size: int, seed: int) -> bytes:
    """N(0, 0.02), cut to bfloat16."""
    generator = random.Random(seed)
    count = (size + 1) // 2
    floats = struct.pack(f"<{count}f", *(generator.gauss(0, 0.02) for _ in range(count)))
    halves = bytearray(2 * count)
    halves[0::2], halves[1::2] = floats[2::4], floats[3::4]
    return bytes(halves[:size])


def float16(size: int, seed: int) -> bytes:
    """N(0, 0.02), rounded to float16."""
    generator = random.Random(seed)
    count = (size + 1) // 2
    return struct.pack(f"<{count}e", *(generator.gauss(0, 0.02) for _ in range(count)))[:size]


def spoilt(stored: bytes, raw_size: int) -> list[tuple[bytes, int]]:
    """Return (stored, raw size) that are not what was coded; some may still be decodable."""
    generator = random.Random(len(stored))
    cases = [(_flipped(stored, at, 1 << at % 8), raw_size) for at in range(HEADER_BYTES)]
    cases += [
        (_flipped(stored, generator.randrange(len(stored)), generator.randrange(1, 256)), raw_size)
        for _ in range(100)
    ]
    cuts = [0, 1, 7, 8, 647, 648, 767, 768, 769, len(stored) - 4, len(stored) - 2, len(stored) - 1]
    cuts += [generator.randrange(len(stored)) for _ in range(30)]
    cases += [(stored[:cut], raw_size) for cut in cuts]
    cases += [(stored + bytes(4), raw_size)]
    cases += [(stored, size) for size in (0, 1, raw_size - 2, raw_size + 1, raw_size + 40000)]
    for kept in (0, 4, 8, 520, 648, 768, 4000):
        garbage = stored[:kept] + generator.randbytes(len(stored) - kept)
        cases.append((garbage, raw_size))
    cases.append((_without_end(stored), raw_size))
    return cases


def _flipped(stored: bytes, at: int, bits: int) -> bytes:
    return stored[:at] + bytes([stored[at] ^ bits]) + stored[at + 1 :]


def _without_end(stored: bytes) -> bytes:
    """Cut words off the last block, and say so in the header: a decoder runs out of them."""
    ends = [*struct.unpack_from("<32I", stored, 520)]
    last = max(range(32), key=lambda block: ends[block])
    ends[last] -= 400
    return stored[:520] + struct.pack("<32I", *ends) + stored[648:-400]
