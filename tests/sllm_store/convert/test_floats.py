"""Casts between float types agree with torch, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sllm_store.convert.floats import cast, cast_float32
from sllm_store.errors import InvalidRequestError

SPECIAL = [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-40, 3.4e38, 65504.0, 1.00390625, 1.01171875]


def samples(*, largest: float) -> Any:
    """Return float32 numbers of every magnitude: random bits, and corners."""
    random = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = np.concatenate([random.view(np.float32), np.array(SPECIAL, np.float32)])
    return values[(np.abs(values) <= largest) | np.isinf(values)]


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16"])
def test_a_cast_agrees_with_torch(source: str, target: str) -> None:
    values = torch.from_numpy(samples(largest=6e4)).to(getattr(torch, source))
    raw = values.view(torch.uint8).numpy()

    found = cast(raw, source=source, target=target, name="w")

    expected = values.to(getattr(torch, target)).view(torch.uint8).numpy()
    assert found.view(np.uint8).tobytes() == expected.tobytes()


def test_rounding_to_bfloat16_is_to_nearest_even_up_to_infinity() -> None:
    values = samples(largest=np.inf)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    found = cast_float32(values, target="bfloat16", name="w")
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_nan_stays_one(bits: int) -> None:
    values = np.array([bits], np.uint32).view(np.float32)
    for target in ("bfloat16", "float16"):
        raw = np.ascontiguousarray(cast_float32(values, target=target, name="w")).view(np.uint8)
        assert np.isnan(cast(raw, source=target, target="float32", name="w")).all()


@pytest.mark.parametrize("target", ["float32", "bfloat16"])
def test_a_number_of_float64_beyond_the_others_is_an_error(target: str) -> None:
    raw = np.array([1.0, 1e300]).view(np.uint8)
    with pytest.raises(InvalidRequestError, match=r"model\.norm has numbers .*: use auto"):
        cast(raw, source="float64", target=target, name="model.norm")
    infinite = np.array([1.0, np.inf]).view(np.uint8)
    assert cast(infinite, source="float64", target=target, name="model.norm").shape == (2,)


def test_a_number_beyond_float16_is_an_error_that_names_the_tensor() -> None:
    with pytest.raises(InvalidRequestError, match=r"model\.norm.*use bfloat16"):
        cast_float32(np.array([1e6], np.float32), target="float16", name="model.norm")
