"""Guesses: tokens that may come next, to be checked in one pass instead of one pass each.

A pass costs its reads of the weights, and a few more tokens in it cost little. What is drawn at a
position is a function of the logits there, so a guess that equals it is what would have come, and
the tokens are those of an engine that does not guess. What was computed for a wrong guess is taken
back: its place in the cache is written again, and a state goes back to where it was saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from sllm.runtime.config.rope import DynamicScaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.engine.active import ActiveRequest

_FIRST = 4
GUESSES_MAX = 16
_SHORTEST = 2  # Tokens that have to recur before what followed them is a guess.
_LONGEST = 3
_DECAY = 0.9
_ENOUGH = 12.0  # Guesses before their share of right ones counts.
_LEAST_SHARE = 0.25
_REST = 64


class Guesser(Protocol):
    """Who guesses."""

    def guess(self, requests: Sequence[ActiveRequest], counts: Sequence[int]) -> list[list[int]]:
        """Return up to so many tokens, one or more, that may follow each request's ids."""


def takes_back(config: ModelConfig) -> bool:
    """Whether a model computes the same for a token whatever comes after it in a span.

    Dynamic rope rotates by the length of a span. States that every token changes are saved before
    guesses, and taken back to there.
    """
    return not isinstance(config.rope.scaling, DynamicScaling)


class Pace:
    """How many tokens to guess for one request, by how many of the last ones were right."""

    def __init__(self) -> None:
        self._count = _FIRST
        self._guessed = 0.0
        self._right = 0.0
        self._rest = _REST
        self._until = 0

    def count(self, length: int) -> int:
        """Return how many to guess when there are so many ids; 0 while it does not pay."""
        return self._count if length >= self._until else 0

    def note(self, *, guessed: int, right: int, length: int) -> None:
        """Take note of guesses; length: how many ids there are with what was right.

        When too few were right, none are made for some time, and for twice as long after that.
        """
        self._count = min(2 * self._count, GUESSES_MAX) if right == guessed else max(right, 2)
        self._guessed = self._guessed * _DECAY + guessed
        self._right = self._right * _DECAY + right
        if self._guessed >= _ENOUGH and self._right < _LEAST_SHARE * self._guessed:
            self._until = length + self._rest
            self._rest *= 2
            self._guessed = self._right = 0.0


class Lookup:
    """Guesses that what followed the last tokens before follows them again."""

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[ActiveRequest, _Index] = WeakKeyDictionary()

    def guess(self, requests: Sequence[ActiveRequest], counts: Sequence[int]) -> list[list[int]]:
        """Return a guess for each request whose last tokens are not new."""
        found = []
        for request, count in zip(requests, counts, strict=True):
            index = self._indices.setdefault(request, _Index())
            index.extend(request.ids)
            found.append(index.guess(request.ids, count))
        return found


class _Index:
    """What followed each short run of tokens of one request, the last time."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._length = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Take in the runs before each id that is new."""
        for place in range(max(self._length, _SHORTEST), len(ids)):
            for size in range(_SHORTEST, min(_LONGEST, place) + 1):
                self._after[tuple(ids[place - size : place])] = place
        self._length = len(ids)

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Return what followed the longest run that the ids end with.

        A run that overlaps its own continuation repeats.
        """
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            place = self._after.get(tuple(ids[-size:]))
            if place is not None:
                period = len(ids) - place
                return [ids[place + step % period] for step in range(count)]
        return []
