"""What a load changes in the interpreter it puts back, however loads overlap and end."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sllm_store.interpreter import SWITCH_INTERVAL_S, no_collection, short_turns

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """Have the usual settings before a test, and after it."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(interval_s)
    gc.enable()


def test_turns_are_short_until_the_last_load_has_ended() -> None:
    with short_turns():
        with short_turns():
            assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S, rel=0.01)
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S, rel=0.01)
    assert sys.getswitchinterval() == pytest.approx(0.005)
    with pytest.raises(KeyError), short_turns():
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_loads_in_many_threads_leave_no_trace() -> None:
    def work() -> None:
        for _ in range(300):
            with short_turns(), no_collection():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.getswitchinterval() == pytest.approx(0.005)
    assert gc.isenabled()


def test_an_interval_that_is_shorter_or_set_meanwhile_stays() -> None:
    sys.setswitchinterval(0.00001)
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(0.00001)
    assert sys.getswitchinterval() == pytest.approx(0.00001)
    sys.setswitchinterval(0.005)
    with short_turns():
        sys.setswitchinterval(0.02)
    assert sys.getswitchinterval() == pytest.approx(0.02)


def test_collection_that_was_off_stays_off() -> None:
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    with no_collection():
        pass
    assert not gc.isenabled()


def test_who_waits_gets_the_interpreter_back_soon_from_a_thread_that_computes() -> None:
    stop = False

    def compute() -> None:
        number = 0
        while not stop:
            number += 1

    def waits_s(count: int) -> float:
        started_s = time.perf_counter()
        for _ in range(count):
            time.sleep(0)  # Lets go of the interpreter, and wants it back.
        return time.perf_counter() - started_s

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        usual_s = waits_s(20)
        with short_turns():
            short_s = waits_s(20)
    finally:
        stop = True
        busy.join()
    assert short_s < usual_s / 3
