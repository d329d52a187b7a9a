"""Steps run several at once, are written in order, and are bounded in memory."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from sllm_store.convert import steps
from sllm_store.convert.steps import Made, Step, run_steps
from sllm_store.errors import LoadCancelledError
from sllm_store.native import Control


class Counter:
    """Counts what has been made and not yet written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held = 0
        self.held_max = 0
        self.written: list[object] = []

    def make(self, number: int) -> Made:
        with self.lock:
            self.held += 1
            self.held_max = max(self.held_max, self.held)
        return Made(memory=number)

    def write(self, made: Made) -> None:
        with self.lock:
            self.held -= 1
        self.written.append(made.memory)

    def steps(self, total: int, *, size_bytes: int = 1) -> list[Step]:
        return [Step(size_bytes=size_bytes, make=partial(self.make, n)) for n in range(total)]


def test_steps_are_written_in_order_and_progress_ends_at_the_total() -> None:
    counter, seen = Counter(), list[tuple[int, int]]()
    done = run_steps(
        counter.steps(50, size_bytes=3),
        counter.write,
        threads=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert counter.written == list(range(50))
    assert seen == [(3 * (n + 1), 150) for n in range(50)]
    assert done == 150


def test_no_more_than_the_threads_and_one_are_made_ahead() -> None:
    counter = Counter()
    run_steps(counter.steps(50), counter.write, threads=3)
    assert counter.held_max <= 4


def test_large_steps_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "WINDOW_BYTES", 10)
    counter = Counter()
    run_steps(counter.steps(20, size_bytes=11), counter.write, threads=4)
    assert counter.held_max == 1
    assert counter.written == list(range(20))


def test_what_a_step_raises_ends_the_run() -> None:
    counter = Counter()

    def fail() -> Made:
        raise ValueError("broken")

    planned = [*counter.steps(3), Step(size_bytes=1, make=fail), *counter.steps(30)]
    with pytest.raises(ValueError, match="broken"):
        run_steps(planned, counter.write, threads=2)
    assert counter.written == [0, 1, 2]


def test_a_cancelled_run_says_so() -> None:
    counter, control = Counter(), Control()

    def write(made: Made) -> None:
        counter.write(made)
        control.cancel()

    with pytest.raises(LoadCancelledError, match="nothing was published"):
        run_steps(counter.steps(10), write, threads=2, control=control)
    assert counter.written == [0]
