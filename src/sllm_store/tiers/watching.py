"""Run a transfer in another thread, and tell from this one how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from sllm_store.errors import DeadlineError

if TYPE_CHECKING:
    from sllm_store.native import Control

PROGRESS_INTERVAL_S = 0.1

Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]  # Given bytes done, and bytes in all.


def run_watched(
    run: Callable[[], Result],
    control: Control,
    *,
    bytes_total: int,
    timeout_s: float | None,
    on_progress: OnProgress | None,
) -> Result:
    """Return what `run` returns; on_progress gets (bytes done, bytes in all) meanwhile and last.

    Raises DeadlineError after timeout_s, and what `run` or on_progress raises; the control is
    cancelled then, and `run` has ended.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        running = executor.submit(run)
        try:
            _watch(control, bytes_total, running.done, timeout_s, on_progress=on_progress)
            result = running.result()
        except BaseException:
            control.cancel()
            raise
    if on_progress is not None:
        on_progress(bytes_total, bytes_total)
    return result


def shifted(on_progress: OnProgress | None, *, total: int, done: int = 0) -> OnProgress | None:
    """Count progress from `done` on, with `total` more bytes in all."""
    if on_progress is None or not total:
        return on_progress
    return lambda part, whole: on_progress(done + part, total + whole)


def _watch(
    control: Control,
    bytes_total: int,
    is_done: Callable[[], bool],
    timeout_s: float | None,
    *,
    on_progress: OnProgress | None,
) -> None:
    """Report progress until the transfer is done; raise DeadlineError when it takes too long."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    bytes_done = 0
    while bytes_done < bytes_total and not is_done():
        wait_s = PROGRESS_INTERVAL_S
        if deadline_s is not None:
            wait_s = min(wait_s, deadline_s - time.monotonic())
            if wait_s <= 0:
                raise DeadlineError(f"the load did not end within {timeout_s} s")
        bytes_done = control.wait(bytes_done, wait_s)
        if on_progress is not None:
            on_progress(bytes_done, bytes_total)
