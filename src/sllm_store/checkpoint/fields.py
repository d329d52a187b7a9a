"""Checks of single values that came from a file: integers, shapes, strides, element types, names.

Each raises FieldError, which says what the value is and should be; the caller adds file and tensor.
"""

from __future__ import annotations

from math import prod

from sllm_store.checkpoint.dtype import ITEM_SIZES

INT64_MAX = 2**63 - 1
DIMENSIONS_MAX = 64
TENSORS_MAX = 1 << 20
SHOWN_CHARS = 80


class FieldError(ValueError):
    """A value that a checkpoint may not hold."""


class CutShortError(FieldError):
    """A file that ends before what is being read."""


def shown(value: object) -> str:
    """Return a value for an error message, cut short."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def integer(value: object, field: str, *, maximum: int = INT64_MAX) -> int:
    """Return a non-negative integer (not a bool, not 3.0) no larger than `maximum`."""
    if type(value) is not int:
        raise FieldError(f"{field} is {shown(value)}, not an integer")
    if not 0 <= value <= maximum:
        raise FieldError(f"{field} is {shown(value)}, not between 0 and {maximum}")
    return value


def integers(value: object, field: str) -> tuple[int, ...]:
    """Return a tuple of non-negative integers from a list with at most DIMENSIONS_MAX."""
    if type(value) is not list:
        raise FieldError(f"{field} is {shown(value)}, not a list of integers")
    if len(value) > DIMENSIONS_MAX:
        raise FieldError(f"{field} has {len(value)} dimensions; at most {DIMENSIONS_MAX} are read")
    for item in value:
        if type(item) is not int or not 0 <= item <= INT64_MAX:
            integer(item, f"an element of {field}")
    return tuple(value)


def shape(value: object) -> tuple[int, ...]:
    """Return a shape whose number of elements fits 64 bits even where a dimension is zero."""
    dimensions = integers(value, "shape")
    if prod(max(size, 1) for size in dimensions) > INT64_MAX // 16:
        raise FieldError(f"shape {shown(value)} has more elements than any memory")
    return dimensions


def dtype(value: object) -> str:
    """Return our name of an element type, written with or without torch's prefix."""
    if isinstance(value, str):
        name = value.removeprefix("torch.")
        if name in ITEM_SIZES:
            return name
    raise FieldError(f"dtype is {shown(value)}, which is not an element type")


def mapping(value: object, field: str) -> dict[str, object]:
    """Return a JSON object with at most TENSORS_MAX entries."""
    if not isinstance(value, dict):
        raise FieldError(f"{field} is {shown(value)}, not an object")
    if len(value) > TENSORS_MAX:
        raise FieldError(f"{field} has {len(value)} entries; at most {TENSORS_MAX} are read")
    return value


def texts(value: object, field: str) -> dict[str, str]:
    """Return a JSON object whose values are strings."""
    raw = mapping(value, field)
    found = {name: item for name, item in raw.items() if isinstance(item, str)}
    if len(found) < len(raw):
        name = next(name for name in raw if name not in found)
        text(raw[name], f"{field} of {shown(name)}")
    return found


def sequence(value: object, field: str) -> list[object]:
    """Return a JSON array with at most TENSORS_MAX entries."""
    if not isinstance(value, list):
        raise FieldError(f"{field} is {shown(value)}, not a list")
    if len(value) > TENSORS_MAX:
        raise FieldError(f"{field} has {len(value)} entries; at most {TENSORS_MAX} are read")
    return value


def text(value: object, field: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise FieldError(f"{field} is {shown(value)}, not a string")
    return value
