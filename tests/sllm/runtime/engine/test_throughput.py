"""Rates are of the last seconds, and a retry is due when a request of average length has ended."""

from __future__ import annotations

import pytest

from sllm.runtime.engine.throughput import Throughput


def test_the_rate_is_of_the_last_seconds() -> None:
    throughput = Throughput()
    assert throughput.tokens_per_s(now_s=0) == 0
    for second in range(100):
        throughput.note_pass(4 if second < 90 else 8, now_s=second)
    assert throughput.tokens_per_s(now_s=99) == pytest.approx(8)
    assert throughput.tokens_per_s(now_s=1000) == 0


def test_a_retry_waits_for_one_of_those_that_run() -> None:
    throughput = Throughput()
    assert throughput.retry_after_s(parallel=4) == 1
    for _ in range(50):
        throughput.note_request(20)
    assert throughput.retry_after_s(parallel=4) == pytest.approx(5)
    throughput.note_request(40)
    assert 5 < throughput.retry_after_s(parallel=4) < 10
    assert throughput.retry_after_s(parallel=100) == 1
