"""Float tensors from one element type to another, on the CPU, rounded to nearest even."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TARGETS = ("float32", "float16", "bfloat16")
FLOATS = (*TARGETS, "float64")

# numpy has no bfloat16: its bits travel as uint16.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}


def cast(raw: NDArray[np.uint8], *, source: str, target: str, name: str) -> NDArray[Any]:
    """Return the elements in `raw` (bytes of dtype `source`) as `target`; bfloat16 as uint16.

    Exact where the target is wider. Raises InvalidRequestError naming the tensor when a finite
    number does not fit into float16, or one of float64 into float32.
    """
    if source == target:
        return raw.view(NUMPY_TYPES[source])
    wide = _widen(raw) if source == "bfloat16" else raw.view(NUMPY_TYPES[source])
    if target == "float16":
        return _narrow(wide, "float16", name)
    wide = _narrow(wide, "float32", name)
    return _narrow_to_bfloat16(wide) if target == "bfloat16" else wide


def cast_float32(values: NDArray[np.float32], *, target: str, name: str) -> NDArray[Any]:
    """Return float32 values as `target`; see `cast`."""
    if target == "bfloat16":
        return _narrow_to_bfloat16(values)
    return values if target == "float32" else _narrow(values, "float16", name)


def _widen(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    bits = raw.view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _narrow_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # The largest finite numbers round to infinity; a NaN may wrap around.
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype(np.uint16)


def _narrow(values: NDArray[Any], target: str, name: str) -> NDArray[Any]:
    """Cast to a type of numpy's; raise InvalidRequestError if that makes a number infinite."""
    with np.errstate(over="ignore"):
        narrow = values.astype(NUMPY_TYPES[target], copy=False)
    loses = narrow.itemsize < values.itemsize
    if loses and (np.isinf(narrow) & ~np.isinf(values)).any():
        wider = "bfloat16 or float32" if target == "float16" else "auto"
        raise InvalidRequestError(
            f"tensor {name} has numbers that {target} cannot hold: use {wider}"
        )
    return narrow
