"""Which expert leaves a full cache: least recently used, or least used of late. Pure.

Time is counted in visits of a layer, not in experts asked for: a pass visits layers in a cycle, so
the experts that were used longest ago are those of the layer that comes next.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Container


class ExpertKey(NamedTuple):
    """An expert, by its layer and its number in it."""

    layer: int
    number: int


class Eviction(Protocol):
    """Knows which experts are in a cache and chooses the next to leave."""

    def use(self, key: ExpertKey, visit: int) -> None:
        """Note that an expert, now in the cache, is used on the `visit`-th visit of its layer."""

    def choose(self, kept: Container[ExpertKey]) -> ExpertKey:
        """Remove an expert that is not `kept`, and return it. There is one."""

    def remove(self, key: ExpertKey) -> None:
        """Note that an expert is not in the cache after all."""


class LruEviction:
    """The one that was not used for longest leaves."""

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def use(self, key: ExpertKey, visit: int) -> None:
        """Make an expert the last to leave."""
        self._order[key] = None
        self._order.move_to_end(key)

    def choose(self, kept: Container[ExpertKey]) -> ExpertKey:
        """Remove the one that was not used for longest."""
        key = next(key for key in self._order if key not in kept)
        del self._order[key]
        return key

    def remove(self, key: ExpertKey) -> None:
        """Forget an expert."""
        del self._order[key]


class FrequencyEviction:
    """The one with the fewest uses leaves, where a use counts half after each half-life.

    What an expert is worth is the sum over its uses of 2 ** (-age / half-life). All worths fall
    alike, so their order changes with uses alone, and a use at visit v may be weighed with
    2 ** (v / half-life) once and for all; the logarithm of the sum is kept. Experts that left keep
    theirs: a model has tens of thousands of experts at most.
    """

    def __init__(self, half_life_visits: float) -> None:
        assert half_life_visits > 0
        self._half_life = half_life_visits
        self._worths: dict[ExpertKey, float] = {}
        # One entry per expert in the cache; its worth may have risen since it was pushed.
        self._heap: list[tuple[float, ExpertKey]] = []
        self._present: set[ExpertKey] = set()

    def use(self, key: ExpertKey, visit: int) -> None:
        """Raise an expert's worth."""
        now = visit / self._half_life
        before = self._worths.get(key)
        worth = now if before is None else now + math.log2(1.0 + 2.0 ** (before - now))
        self._worths[key] = worth
        if key not in self._present:
            self._present.add(key)
            heappush(self._heap, (worth, key))

    def choose(self, kept: Container[ExpertKey]) -> ExpertKey:
        """Remove the one of least worth."""
        passed: list[tuple[float, ExpertKey]] = []
        while True:
            pushed, key = heappop(self._heap)
            worth = self._worths[key]
            if worth > pushed:
                heappush(self._heap, (worth, key))
            elif key in kept:
                passed.append((worth, key))
            else:
                break
        for entry in passed:
            heappush(self._heap, entry)
        self._present.remove(key)
        return key

    def remove(self, key: ExpertKey) -> None:
        """Forget that an expert is in the cache; what it is worth stays known."""
        self._present.remove(key)
        self._heap = [entry for entry in self._heap if entry[1] != key]
        heapify(self._heap)
