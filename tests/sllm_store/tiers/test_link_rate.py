"""What a link is said to do is what its fastest copy did."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.tiers.link_rate import link_rate

if TYPE_CHECKING:
    import pytest


def test_the_best_of_several_copies_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    takes_s = iter((4.0, 0.5, 1.0))
    copied: list[tuple[int, int, int, int]] = []

    def copy(device: int, source: int, target: int, size_bytes: int) -> None:
        nonlocal now_s
        copied.append((device, source, target, size_bytes))
        now_s += next(takes_s)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(native, "copy_to_device", copy)
    monkeypatch.setattr(native, "DeviceBuffer", lambda *_: SimpleNamespace(address=9))
    assert link_rate(1, 5, 1000, copies=3) == 2000.0
    assert copied == [(1, 5, 9, 1000)] * 3
