"""Run a transfer in another thread, and tell from this one how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
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
    meanwhile: Callable[[], None] | None = None,
) -> Result:
    """Return what `run` returns; on_progress gets (bytes done, bytes in all) meanwhile and last.

    `meanwhile` is called once, while it runs. Raises DeadlineError after timeout_s, and what `run`,
    `meanwhile` or on_progress raises; the control is cancelled then, and `run` has ended.
    """
    with futures.ThreadPoolExecutor(max_workers=1) as executor:
        running = executor.submit(run)
        try:
            if meanwhile is not None:
                meanwhile()
            if on_progress is None:
                report = None
            else:
                report = partial(_report, on_progress, control, bytes_total)
            _watch(running, timeout_s, report)
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


def _report(on_progress: OnProgress, control: Control, bytes_total: int) -> None:
    on_progress(control.bytes_done, bytes_total)


def _watch(
    running: futures.Future[Result], timeout_s: float | None, report: Callable[[], None] | None
) -> None:
    """Wait until a transfer is done; raise DeadlineError when it takes too long.

    This thread wakes only to report: each time it wants the interpreter lock, which may be busy.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    wait_s = None if report is None else PROGRESS_INTERVAL_S
    while not running.done():
        if deadline_s is not None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineError(f"the load did not end within {timeout_s} s")
            wait_s = left_s if report is None else min(left_s, PROGRESS_INTERVAL_S)
        futures.wait([running], timeout=wait_s)
        if report is not None and not running.done():
            report()
