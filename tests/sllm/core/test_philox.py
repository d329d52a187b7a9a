"""The published vectors of Philox4x32-10, and numbers that look like chance."""

from __future__ import annotations

import pytest

from sllm.core.philox import Words, philox, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # From Random123's kat_vectors.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_the_published_ones(
    counter: Words, key: tuple[int, int], expected: Words
) -> None:
    assert philox(counter, key) == expected


def test_numbers_depend_on_seed_position_and_stream_alone() -> None:
    keys = [
        (seed, position, stream)
        for seed in (0, 1, 1 << 63)
        for position in (0, 1, 1 << 40)
        for stream in (0, 1)
    ]
    numbers = {uniform(seed, position, stream=stream) for seed, position, stream in keys}
    assert len(numbers) == len(keys)
    assert numbers == {uniform(seed, position, stream=stream) for seed, position, stream in keys}


def test_numbers_are_spread_evenly() -> None:
    tenths = [0] * 10
    for position in range(10_000):
        number = uniform(7, position)
        assert 0 <= number < 1
        tenths[int(number * 10)] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in tenths) < 27.9  # Chi-squared, p = 0.001.
