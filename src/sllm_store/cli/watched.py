"""Run native work in a thread, so that Ctrl-C reaches it at once and ends it cleanly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.native import Control

_Result = TypeVar("_Result")

_INTERVAL_S = 0.1


def run_watched(
    work: Callable[[Control], _Result],
    *,
    bytes_total: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> _Result:
    """Return what `work` returns; an interruption cancels its Control and waits for its end.

    With on_progress, what the Control counts is reported.
    """
    from sllm_store.native import Control

    control = Control()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="work") as executor:
        future = executor.submit(work, control)
        try:
            bytes_done = 0
            while on_progress is not None and bytes_done < bytes_total and not future.done():
                bytes_done = control.wait(bytes_done, _INTERVAL_S)
                on_progress(bytes_done, bytes_total)
            return future.result()
        except BaseException:
            control.cancel()
            raise
