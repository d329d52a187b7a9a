"""Images in memory become host arenas: copied, decoded, or refused whole."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from sllm_store import native
from sllm_store.checkpoint.layout import Arena, Decode, Piece
from sllm_store.errors import ChecksumError
from sllm_store.tiers.decoding import decode_image
from tests.checkpoint_memory import weights

RAW = weights(300_000)


def coded(content: bytes) -> bytes:
    source = np.frombuffer(content, dtype=np.uint8)
    stored = np.empty(len(content), dtype=np.uint8)
    (size,) = native.encode_segments_into(
        [(source.ctypes.data, len(content), stored.ctypes.data)],
        threads=1,
        control=native.Control(),
    )
    assert 0 < size < len(content)
    return stored[:size].tobytes()


def arena_of(stored: bytes, pages: int = 64) -> tuple[native.HostBuffer, Arena]:
    """Return an image with a coded segment, and an arena that has it behind a short piece."""
    image = native.HostBuffer(4096 * (pages + 1) + len(stored))
    ctypes.memmove(image.address, b"abc", 3)
    ctypes.memmove(image.address + 4096 * pages, stored, len(stored))
    arena = Arena(
        size_bytes=256 + len(RAW),
        offsets={},
        pieces=(Piece(image_offset=0, size_bytes=3, arena_offset=0),),
        decodes=(Decode(4096 * pages, len(stored), len(RAW), 256),),
    )
    return image, arena


def test_pieces_and_segments_arrive_where_the_arena_has_them() -> None:
    image, arena = arena_of(coded(RAW))
    seen: list[tuple[int, int]] = []
    memory = decode_image(
        image.address, arena, on_progress=lambda done, total: seen.append((done, total))
    )
    content = (ctypes.c_char * memory.size).from_address(memory.address).raw
    assert content[:4] == b"abc\0"
    assert content[256 : 256 + len(RAW)] == RAW
    assert seen[-1] == (3 + len(RAW), 3 + len(RAW))


def test_a_corrupt_segment_is_an_error() -> None:
    image, arena = arena_of(b"????" + coded(RAW)[4:])
    with pytest.raises(ChecksumError, match=r"corrupt.*verify the checkpoint"):
        decode_image(image.address, arena)
