"""Sampling parameters that make no sense are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from sllm.core.errors import InvalidSamplingError
from sllm.core.sampling import SamplingParameters


def test_the_defaults_change_nothing() -> None:
    parameters = SamplingParameters(seed=1, max_tokens=2)
    assert (parameters.temperature, parameters.top_k, parameters.top_p) == (1.0, 0, 1.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"repeat_window": -1}, "repeat_window"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {1: float("inf")}}, "logit bias"),
        ({"stop": ("a", "")}, "stop text is empty"),
        ({"stop": ("a",) * 65}, "stop texts"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSamplingError, match=named):
        SamplingParameters(**{"seed": 1, "max_tokens": 2, **changes})
