"""Dtypes as users write them and as checkpoints name them."""

from __future__ import annotations

import torch

from sllm_store.errors import InvalidRequestError


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype that this PyTorch calls `name`, such as 'bfloat16'."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidRequestError(
            f"dtype {name!r} is unknown to PyTorch {torch.__version__}: a newer one may have it"
        )
    return dtype


def parse_float_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype that a caller asked for; None for 'auto', which keeps the stored one."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidRequestError(
            f"dtype {dtype!r}: use 'auto' or a floating point dtype such as 'bfloat16'"
        )
    return found
