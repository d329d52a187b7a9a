"""Throughput: tokens per second of late, and how long a request takes."""

from __future__ import annotations

from collections import deque
from threading import Lock

_WINDOW_S = 10.0
_PASSES_MAX = 4096
_WEIGHT = 0.2  # Of the last request, in the average.


class Throughput:
    """What an engine brings about, from events and their times. Of use to several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._passes: deque[tuple[float, int]] = deque(maxlen=_PASSES_MAX)
        self._request_s: float | None = None

    def note_pass(self, tokens: int, *, now_s: float) -> None:
        """Take note of tokens that a pass brought."""
        with self._lock:
            self._passes.append((now_s, tokens))

    def note_request(self, duration_s: float) -> None:
        """Take note of how long a request ran."""
        before = self._request_s
        self._request_s = duration_s if before is None else before + _WEIGHT * (duration_s - before)

    def tokens_per_s(self, *, now_s: float) -> float:
        """Return the rate of the last seconds in which anything ran; 0 if nothing did."""
        with self._lock:
            recent = [each for each in self._passes if each[0] > now_s - _WINDOW_S]
        if len(recent) < 2:
            return 0.0
        first_s = recent[0][0]
        return sum(tokens for _, tokens in recent[1:]) / max(now_s - first_s, 1e-6)

    def retry_after_s(self, *, parallel: int) -> float:
        """Return when one of so many requests that run will have ended, going by earlier ones."""
        return max(1.0, (self._request_s or 0.0) / parallel)
