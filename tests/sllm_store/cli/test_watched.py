"""Work in a thread, watched from the main one."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from sllm_store.cli.watched import run_watched

if TYPE_CHECKING:
    from sllm_store.native import Control


def test_it_returns_what_the_work_returns() -> None:
    assert run_watched(lambda control: (control.cancelled, 7)) == (False, 7)


def test_an_error_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_watched(lambda _: 1 / 0)


def test_an_interruption_cancels_the_work_and_waits_for_its_end() -> None:
    ended: list[bool] = []

    def work(control: Control) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        deadline_s = time.monotonic() + 30
        while not control.cancelled and time.monotonic() < deadline_s:
            control.wait(0, 0.01)
        ended.append(control.cancelled)

    with pytest.raises(KeyboardInterrupt):
        run_watched(work, bytes_total=1, on_progress=lambda done, total: None)
    assert ended == [True]
