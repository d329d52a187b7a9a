"""How long a model stays."""

from __future__ import annotations

import math

import pytest

from sllm.core.errors import InvalidRequestError
from sllm.gateway.keep_alive import parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300.0),
        (0, 0.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("90", 90.0),
        (-1, math.inf),
        ("-1", math.inf),
        ("-1m", math.inf),
        (1e300, math.inf),
    ],
)
def test_seconds_and_durations_are_understood(value: float | str, seconds: float) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["", "soon", "5 minutes", "1d", "m5", float("nan"), "9" * 99])
def test_anything_else_is_refused(value: float | str) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive"):
        parse_keep_alive(value)
