"""Run native work in a thread, so that Ctrl-C reaches it at once and ends it cleanly."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sllm_store.native import Control

_Result = TypeVar("_Result")

_INTERVAL_S = 0.1


def run_watched(
    work: Callable[[Control], _Result],
    *,
    bytes_total: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> _Result:
    """Return what `work` returns; Ctrl-C cancels its Control, waits for its end and is raised.

    With on_progress, what the Control counts is reported. Call it from the main thread.
    """
    from sllm_store.native import Control

    control = Control()
    with (
        _interruption_cancels(control),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="work") as executor,
    ):
        future = executor.submit(work, control)
        bytes_done = 0
        while on_progress is not None and bytes_done < bytes_total and not future.done():
            bytes_done = control.wait(bytes_done, _INTERVAL_S)
            on_progress(bytes_done, bytes_total)
        return future.result()


@contextmanager
def _interruption_cancels(control: Control) -> Iterator[None]:
    """Make the first Ctrl-C cancel, and raise KeyboardInterrupt in the end; the next one raises."""
    interrupted = False

    def cancel(number: int, frame: object) -> None:
        del number, frame
        nonlocal interrupted
        interrupted = True
        control.cancel()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupted:
            raise KeyboardInterrupt
