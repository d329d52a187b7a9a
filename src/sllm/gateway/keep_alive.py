"""How long a model stays loaded, as Ollama's clients say it: seconds, or "5m", "1h30m", "-1"."""

from __future__ import annotations

import math
import re

from sllm.core.errors import InvalidRequestError

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"[+-]?(?:{_PART})+")
_LENGTH_MAX = 64
LONGEST_S = 100 * 365 * 86400.0


def parse_keep_alive(value: float | str) -> float:
    """Return seconds: 0 for not at all, infinity for ever, which a negative number asks for.

    Raises InvalidRequestError for what is neither a number nor one of Go's durations.
    """
    seconds = _parse_text(value) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise InvalidRequestError("keep_alive is not a number")
    return math.inf if seconds < 0 or seconds > LONGEST_S else seconds


def _parse_text(text: str) -> float:
    stripped = text.strip()
    if len(stripped) <= _LENGTH_MAX:
        if _DURATION.fullmatch(stripped):
            parts = re.findall(_PART, stripped)
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
            return -seconds if stripped.startswith("-") else seconds
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", stripped):
            return float(stripped)
    raise InvalidRequestError(
        f'keep_alive is {text[:_LENGTH_MAX]!r}; give seconds (300, -1) or a duration ("5m", "1h")'
    )
