"""How much host memory there is, and what of it may still be taken."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """Return the memory that is free, or would be once the page cache gave way; 0 if untold."""
    return _meminfo("MemAvailable")


def machine_bytes() -> int:
    """Return all memory of the machine, swap included."""
    return _meminfo("MemTotal") + _meminfo("SwapTotal")


def _meminfo(wanted: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) << 10
    return 0
