"""Run an import: steps that each make some tensors in memory, several at once, written in order.

Making (reading, dequantising) and writing overlap. What is made but not yet written is bounded:
one step more than the threads, and no more than WINDOW_BYTES unless one tensor alone is larger.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.errors import LoadCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from sllm_store.checkpoint.writer import Source
    from sllm_store.native import Control

STEP_THREADS = 4
WINDOW_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Tensors in memory, ready to be written. `memory` keeps their addresses valid."""

    sources: tuple[Source, ...] = ()
    buffers: tuple[Source, ...] = ()
    memory: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Makes tensors that share memory; `size_bytes` is what they take."""

    size_bytes: int
    make: Callable[[], Made]


def run_steps(
    steps: Sequence[Step],
    write: Callable[[Made], None],
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    control: Control | None = None,
) -> int:
    """Make and write every tensor, in order; return the bytes that were written.

    threads: STEP_THREADS unless given.

    Raises what a step or `write` raises, after the steps that had begun are over, and
    LoadCancelledError when `control` is cancelled.
    """
    total = sum(step.size_bytes for step in steps)
    done = 0
    threads = threads or STEP_THREADS
    with ThreadPoolExecutor(threads, thread_name_prefix="import") as pool:
        try:
            waiting: deque[tuple[Step, Future[Made]]] = deque()
            upcoming = deque(steps)
            while upcoming or waiting:
                if control is not None and control.cancelled:
                    raise LoadCancelledError("the import was cancelled; nothing was published")
                while upcoming and _has_room(waiting, upcoming[0], threads):
                    step = upcoming.popleft()
                    waiting.append((step, pool.submit(step.make)))
                step, future = waiting.popleft()
                write(future.result())
                done += step.size_bytes
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return done


def _has_room(waiting: Sequence[tuple[Step, object]], step: Step, threads: int) -> bool:
    if not waiting:
        return True
    held = sum(other.size_bytes for other, _ in waiting)
    return len(waiting) <= threads and held + step.size_bytes <= WINDOW_BYTES
