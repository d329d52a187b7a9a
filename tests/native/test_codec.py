"""The codec of 16-bit floats: every bit comes back, and what is no segment is refused."""

from __future__ import annotations

import ctypes
import errno
import random
import struct
from typing import TYPE_CHECKING

import pytest

from sllm_store import native

if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENT = native.SEGMENT_BYTES


def encode(raw: bytes) -> bytes | None:
    memory = ctypes.create_string_buffer(raw, max(len(raw), 1))
    pieces = [(ctypes.addressof(memory), len(raw))]
    (coded,) = native.encode_segments(pieces, threads=1, control=native.Control())
    return coded


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
    """Weights as models have them: N(0, 0.02), cut to bfloat16."""
    generator = random.Random(seed)
    floats = struct.pack(
        f"<{(size + 1) // 2}f", *(generator.gauss(0, 0.02) for _ in range((size + 1) // 2))
    )
    high = bytearray(2 * (len(floats) // 4))
    high[0::2], high[1::2] = floats[2::4], floats[3::4]
    return bytes(high[:size])


def float16(size: int, seed: int) -> bytes:
    generator = random.Random(seed)
    count = (size + 1) // 2
    return struct.pack(f"<{count}e", *(generator.gauss(0, 0.02) for _ in range(count)))[:size]


@pytest.mark.parametrize("make", [bfloat16, float16])
@pytest.mark.parametrize(
    "size",
    [0, 1, 2, 3, 255, 4096, 32767, 32768, 32769, 65534, 65535, 65536, 65537, 99999, SEGMENT],
)
def test_what_is_coded_comes_back(size: int, make: Callable[[int, int], bytes]) -> None:
    raw = make(size, size)
    coded = encode(raw)
    if coded is None:
        assert size < 8192
        return
    assert len(coded) <= size - size // 16
    assert decode(coded, size) == raw


def test_bytes_without_order_are_not_coded() -> None:
    assert encode(random.Random(1).randbytes(SEGMENT)) is None


def test_another_size_is_refused() -> None:
    coded = encode(bfloat16(65536, 1))
    assert coded is not None
    for size in (0, 1, 65534, 65535, 65537, 2 * SEGMENT):
        with pytest.raises(native.NativeError, match="corrupt") as caught:
            decode(coded, size)
        assert caught.value.errno == errno.EBADMSG
