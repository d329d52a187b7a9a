"""Byte sizes and rounding: parse '32MB', format bytes, align_up, div_ceil."""

from __future__ import annotations

import re

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_FACTORS = {unit: 1024**power for power, unit in enumerate(_UNITS)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPEZY]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Return the number of bytes that `text` names; units are powers of 1024, as upstream's are.

    Accepts '4GB', '4 GiB', '4g', '1.5GB' and plain numbers of bytes.
    Raises ValueError for anything else, saying what a size looks like.
    """
    if isinstance(text, int):
        size_bytes, matched = text, None
    else:
        matched = _SIZE.fullmatch(text.strip())
        if matched is None:
            raise ValueError(
                f"{text!r} is not a size: write a number and a unit, as in 32MB or 4GB"
            )
        size_bytes = int(float(matched[1]) * _FACTORS[f"{matched[2].upper()}B"])
    if size_bytes < 0:
        raise ValueError(f"{text!r} is not a size: it is negative")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return a size for a person, in powers of 1024: '98.4 MB'."""
    size = float(size_bytes)
    for unit in _FACTORS:
        if size < 1024 or unit == "YB":
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable: YB ends the loop")


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is not below `value`."""
    assert alignment > 0
    return div_ceil(value, alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """Return the largest multiple of `alignment` that is not above `value`."""
    assert alignment > 0
    return value // alignment * alignment


def div_ceil(value: int, divisor: int) -> int:
    """Return value / divisor, rounded up."""
    assert divisor > 0
    return -(-value // divisor)
