"""Sizes as people write them, and rounding."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm_store.units import align_down, align_up, div_ceil, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (123, 123),
        ("32MB", 32 << 20),
        ("32 MiB", 32 << 20),
        ("4g", 4 << 30),
        (" 4GB ", 4 << 30),
        ("1.5kb", 1536),
        ("2T", 2 << 40),
        ("7B", 7),
    ],
)
def test_a_size_is_a_number_and_a_unit_of_1024(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "4 XB", "4GBB", "1e9", "-1GB", "4,5GB", "nan", "0x10"])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="32MB"):
        parse_size(text)


def test_a_negative_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        parse_size(-1)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (98_362_432, "93.8 MB"),
        (16 << 30, "16.0 GB"),
        (5000 << 80, "5000.0 YB"),
    ],
)
def test_a_size_is_written_for_a_person(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1 << 60))
def test_a_written_size_can_be_read_again(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.06)


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 40))
def test_rounding_brackets_the_value_by_multiples(value: int, alignment: int) -> None:
    low, high = align_down(value, alignment), align_up(value, alignment)
    assert low % alignment == high % alignment == 0
    assert low <= value <= high < low + 2 * alignment
    assert high - low in {0, alignment}
    assert div_ceil(value, alignment) * alignment == high
