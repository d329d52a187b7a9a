"""CRC-32C of bytes that Python holds."""

from __future__ import annotations

import ctypes

from sllm_store import native


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`."""
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    return native.crc32c(address or 0, len(data))
