"""Philox4x32-10: random numbers that are a function of a key and a counter, with no state.

A request's n-th token is drawn with the seed as key and n as counter, so whoever resumes the
request draws what would have been drawn. (Salmon et al., Parallel random numbers: as easy as
1, 2, 3, 2011.)
"""

from __future__ import annotations

SEED_MAX = (1 << 64) - 1
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return four random words of 32 bits for a counter and a key of such words."""
    first, second, third, fourth = counter
    low, high = key
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * first, _MULTIPLIERS[1] * third
        first, second, third, fourth = (
            (right >> 32) ^ second ^ low,
            right & _WORD,
            (left >> 32) ^ fourth ^ high,
            left & _WORD,
        )
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return first, second, third, fourth


def uniform(seed: int, position: int, *, stream: int = 0) -> float:
    """Return the number in [0, 1) of a seed at a position; streams are for different purposes."""
    assert 0 <= seed <= SEED_MAX
    assert position >= 0
    counter = (position & _WORD, position >> 32, stream, 0)
    words = philox(counter, (seed & _WORD, seed >> 32))
    return ((words[0] << 32 | words[1]) >> 11) / (1 << 53)
