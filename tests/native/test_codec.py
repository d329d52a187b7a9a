"""The codec of 16-bit floats: every bit comes back, and what is no segment is refused."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from sllm_store import native
from tests.native.segments import bfloat16, coded, decode, encode, float16, spoilt

if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENT = native.SEGMENT_BYTES
SIZES = [0, 1, 2, 3, 255, 4096, 32767, 32768, 32769, 65534, 65535, 65536, 65537, 99999, SEGMENT]
GOLDEN = Path(__file__).parents[1] / "golden" / "segment-v1"
GOLDEN_RAW_SHA256 = "d73f4ceaad9567a04d0fc7cc3dc392b5b44f9afde4fc8a93118d5373e200430b"


class Segments:
    """Pieces of memory to code, and memory to code them into."""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents
        self._memory = [ctypes.create_string_buffer(raw, len(raw)) for raw in contents]
        self._stored = [ctypes.create_string_buffer(len(raw)) for raw in contents]
        self.pieces = [
            (ctypes.addressof(raw), len(raw), ctypes.addressof(stored))
            for raw, stored in zip(self._memory, self._stored, strict=True)
        ]

    def stored(self, index: int, size: int) -> bytes:
        return self._stored[index].raw[:size]


@pytest.mark.parametrize("make", [bfloat16, float16])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_coded_comes_back(size: int, make: Callable[[int, int], bytes]) -> None:
    raw = make(size, size)
    stored = encode(raw)
    if stored is None:
        assert size < 8192
        return
    assert len(stored) <= size - size // 16
    assert decode(stored, size) == raw


@pytest.mark.parametrize(
    "word",
    [0x0000, 0x8000, 0x3F80, 0xFFFF, 0x7F80, 0xFF80, 0x7FC0, 0x7C00, 0x0001],
    ids=lambda word: f"{word:04x}",
)
@pytest.mark.parametrize("size", [8192, 65537, SEGMENT])
def test_one_word_over_and_over_costs_little_more_than_its_low_byte(word: int, size: int) -> None:
    raw = (struct.pack("<H", word) * (size // 2 + 1))[:size]
    stored = coded(raw)
    assert len(stored) < size // 2 + 768 + 256 + size // 32
    assert decode(stored, size) == raw


def test_two_words_of_which_one_is_rare_are_coded() -> None:
    raw = bytearray(b"\x80\x3f" * (SEGMENT // 2))
    raw[777_778:777_780] = b"\xff\xff"
    assert decode(coded(bytes(raw)), SEGMENT) == raw


def test_every_exponent_may_occur() -> None:
    words = [value << 7 for value in range(256)] + [0x3F80] * 50_000
    random.Random(1).shuffle(words)
    raw = struct.pack(f"<{len(words)}H", *words)
    assert decode(coded(raw), len(raw)) == raw


@settings(max_examples=60, deadline=None)
@given(
    alphabet=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=300),
    size=st.integers(0, 80_000),
    skew=st.floats(0, 20),
    seed=st.integers(0, 1 << 32),
)
def test_whatever_is_coded_comes_back(
    alphabet: list[int], size: int, skew: float, seed: int
) -> None:
    weights = [(rank + 1) ** -skew for rank in range(len(alphabet))]
    words = random.Random(seed).choices(alphabet, weights, k=(size + 1) // 2)
    raw = struct.pack(f"<{len(words)}H", *words)[:size]
    stored = encode(raw)
    if stored is not None:
        assert len(stored) <= size - size // 16
        assert decode(stored, size) == raw


@pytest.mark.parametrize("size", [0, 1, 2, 65536, SEGMENT])
def test_bytes_without_order_are_not_coded(size: int) -> None:
    assert encode(random.Random(size).randbytes(size)) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_are_coded_alike_by_any_number_of_threads(threads: int) -> None:
    contents = [bfloat16(100_000, 1), random.Random(2).randbytes(70_000), bfloat16(65_537, 3), b""]
    segments = Segments(contents)
    expected = [encode(raw) for raw in contents]
    control = native.Control()
    sizes = native.encode_segments_into(segments.pieces, threads=threads, control=control)
    assert control.bytes_done == sum(map(len, contents))
    assert sizes == [len(stored or b"") for stored in expected]
    for index, stored in enumerate(expected):
        assert stored is None or segments.stored(index, sizes[index]) == stored


def test_a_cancelled_call_codes_nothing() -> None:
    control = native.Control()
    control.cancel()
    with pytest.raises(native.Cancelled):
        native.encode_segments_into(Segments([bytes(9)]).pieces, threads=1, control=control)


def test_arguments_that_make_no_sense_are_refused() -> None:
    segments = Segments([bytes(SEGMENT + 2)])
    control = native.Control()
    with pytest.raises(ValueError, match=str(SEGMENT)):
        native.encode_segments_into(segments.pieces, threads=1, control=control)
    address, _, destination = segments.pieces[0]
    for piece in ((address, -1, destination), (0, 2, destination), (address, 2, -5)):
        with pytest.raises(ValueError, match=r"negative|memory"):
            native.encode_segments_into([piece], threads=1, control=control)
    with pytest.raises(ValueError, match="threads"):
        native.encode_segments_into([(address, 2, destination)], threads=0, control=control)
    with pytest.raises(ValueError, match="negative"):
        native.decode_segment(address, -1, address, 2)


def test_another_size_is_refused() -> None:
    stored = coded(bfloat16(65536, 1))
    for size in (0, 1, 65534, 65535, 65537, 2 * SEGMENT):
        with pytest.raises(native.NativeError, match="corrupt") as caught:
            decode(stored, size)
        assert caught.value.errno == errno.EBADMSG


def test_what_is_spoilt_never_harms() -> None:
    raw = bfloat16(40_001, 7)
    refused = 0
    cases = spoilt(coded(raw), len(raw))
    for stored, raw_size in cases:
        try:
            decode(stored, raw_size)
        except native.NativeError:
            refused += 1
    assert refused > len(cases) // 2


def test_the_format_does_not_drift() -> None:
    stored = GOLDEN.read_bytes()
    raw = decode(stored, 40_001)
    assert hashlib.sha256(raw).hexdigest() == GOLDEN_RAW_SHA256
    assert encode(raw) == stored
