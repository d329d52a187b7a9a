"""A GPU is woken beside other work, and one that is not there is nobody's trouble yet."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.waking import wake_gpu

if TYPE_CHECKING:
    import pytest


def test_where_there_is_no_gpu_it_ends_without_a_word(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = wake_gpu(999)
    thread.join(60)
    assert not thread.is_alive()
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_a_gpu_is_opened_by_an_allocation_that_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []
    monkeypatch.setattr(native, "device_count", lambda: 2)
    monkeypatch.setattr(native, "DeviceBuffer", lambda device, _size: opened.append(device))
    wake_gpu(1).join(60)
    wake_gpu(2).join(60)
    assert opened == [1]


def test_a_driver_that_refuses_is_left_for_who_uses_the_gpu(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def refuse() -> int:
        raise native.CudaError("no driver", 1)

    monkeypatch.setattr(native, "device_count", refuse)
    wake_gpu().join(60)
    assert not recwarn.list


def test_what_needs_the_gpu_is_done_beside_it_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(native, "device_count", lambda: 1)
    monkeypatch.setattr(native, "DeviceBuffer", lambda *_: None)
    wake_gpu(1, beside=done.set).join(60)
    assert not done.is_set()
    wake_gpu(0, beside=done.set).join(60)
    assert done.wait(60)
