"""The codec's kernel on a real GPU: the CPU decoder's bytes, and an error where that has one."""

from __future__ import annotations

import random
import struct

import pytest
import torch

from sllm_store import native
from tests.native.segments import bfloat16, coded, decode, float16, spoilt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = [8192, 8447, 8448, 8449, 8450, 32766, 32767, 32768, 32769, 33000, 65536, 65537, 99999]
GUARD = 4096


class DeviceSegments:
    """Segments in device memory, with guards around what they are decoded to."""

    def __init__(self, cases: list[tuple[bytes, int]]) -> None:
        self.raw_sizes = [raw_size for _, raw_size in cases]
        self.stored = [
            torch.frombuffer(bytearray(stored or b"\0"), dtype=torch.uint8).to("cuda:0")
            for stored, _ in cases
        ]
        self.raw = [
            torch.full((GUARD + size + GUARD,), 0xA5, dtype=torch.uint8, device="cuda:0")
            for size in self.raw_sizes
        ]
        self.jobs = [
            (stored.data_ptr(), len(case), raw.data_ptr() + GUARD, size)
            for stored, raw, (case, size) in zip(self.stored, self.raw, cases, strict=True)
        ]
        torch.cuda.synchronize()

    def decoded(self, index: int) -> bytes:
        """Return what a segment was decoded to, after a look at its guards."""
        content = self.raw[index].cpu().numpy().tobytes()
        assert content[:GUARD] == b"\xa5" * GUARD
        assert content[GUARD + self.raw_sizes[index] :] == b"\xa5" * GUARD
        return content[GUARD:-GUARD]


def decoded_on_cpu(stored: bytes, raw_size: int) -> bytes | None:
    try:
        return decode(stored, raw_size)
    except native.NativeError:
        return None


def test_segments_of_every_size_are_decoded_as_on_the_cpu() -> None:
    raws = [bfloat16(size, size) for size in SIZES]
    raws += [float16(size, size) for size in SIZES if size > 30_000]
    raws += [bfloat16(native.SEGMENT_BYTES - cut, cut) for cut in (0, 1, 2, 255)]
    raws += [b"\x80\x3f" * count for count in (5000, 40_001, native.SEGMENT_BYTES // 2)]
    words = [value << 7 for value in range(256)] + [0x3F80] * 50_000
    random.Random(1).shuffle(words)
    raws.append(struct.pack(f"<{len(words)}H", *words))
    segments = DeviceSegments([(coded(raw), len(raw)) for raw in raws])
    native.decode_segments_on_device(0, segments.jobs)
    for index, raw in enumerate(raws):
        assert segments.decoded(index) == raw


def test_a_thousand_segments_at_once() -> None:
    raws = [bfloat16(60_000 + 7 * i, i) for i in range(12)]
    cases = [(coded(raw), len(raw)) for raw in raws]
    segments = DeviceSegments([cases[i % len(cases)] for i in range(1000)])
    for _ in range(3):
        native.decode_segments_on_device(0, segments.jobs)
    for index in range(1000):
        assert segments.decoded(index) == raws[index % len(raws)]


@pytest.mark.parametrize("size", [9001, 40_000])
def test_what_is_spoilt_is_found_as_on_the_cpu_and_harms_nothing(size: int) -> None:
    cases = spoilt(coded(bfloat16(size, size)), size)
    segments = DeviceSegments(cases)
    for index, (stored, raw_size) in enumerate(cases):
        expected = decoded_on_cpu(stored, raw_size)
        if expected is None:
            with pytest.raises(native.NativeError, match="corrupt"):
                native.decode_segments_on_device(0, [segments.jobs[index]])
            segments.decoded(index)
        else:
            native.decode_segments_on_device(0, [segments.jobs[index]])
            assert segments.decoded(index) == expected
