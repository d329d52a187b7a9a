"""Run a transfer that has a thread of its own, and tell from this one how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sllm_store.errors import DeadlineError
from sllm_store.tiers.transfer import Beside

if TYPE_CHECKING:
    from sllm_store.native import Control

Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]  # Given bytes done, and bytes in all.


def run_watched(
    run: Callable[[Beside], Result],
    control: Control,
    *,
    bytes_total: int,
    timeout_s: float | None,
    on_progress: OnProgress | None,
    meanwhile: Callable[[], None] | None = None,
) -> Result:
    """Return what `run` returns, which calls what it is given beside its transfer.

    That is `meanwhile`, once, and on_progress with (bytes done, bytes in all), again in the end.
    Raises DeadlineError after timeout_s, and what `run`, `meanwhile` or on_progress raises.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s

    def require_time() -> None:
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise DeadlineError(f"the load did not end within {timeout_s} s")

    def begin() -> None:
        if meanwhile is not None:
            meanwhile()
        require_time()

    def watch() -> None:
        require_time()
        if on_progress is not None:
            on_progress(control.bytes_done, bytes_total)

    result = run(Beside(meanwhile=begin, watch=watch))
    if on_progress is not None:
        on_progress(bytes_total, bytes_total)
    return result


def shifted(on_progress: OnProgress | None, *, total: int, done: int = 0) -> OnProgress | None:
    """Count progress from `done` on, with `total` more bytes in all."""
    if on_progress is None or not total:
        return on_progress
    return lambda part, whole: on_progress(done + part, total + whole)
