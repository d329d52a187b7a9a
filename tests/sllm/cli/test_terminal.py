"""Numbers are written for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sllm.cli.terminal import format_age, format_count, format_duration

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=-5), "just now"),
        (timedelta(seconds=30), "30 seconds ago"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=2), "2 days ago"),
        (timedelta(days=15), "2 weeks ago"),
        (timedelta(days=100), "3 months ago"),
        (timedelta(days=800), "2 years ago"),
    ],
)
def test_ages_are_rounded_down(age: timedelta, text: str) -> None:
    assert format_age(NOW - age, NOW) == text


def test_counts_and_durations_have_units() -> None:
    assert format_count(134_515_008) == "134.5M"
    assert format_count(397_000_000_000) == "397.0B"
    assert format_count(12) == "12"
    assert format_duration(56_700_000) == "56.7ms"
    assert format_duration(1_234_000_000) == "1.234s"
    assert format_duration(61_500_000_000) == "1m1.5s"
