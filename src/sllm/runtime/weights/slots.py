"""SlotTable: which expert is in which slot of a cache, and which may leave. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sllm.runtime.weights.eviction import ExpertKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sllm.runtime.weights.eviction import Eviction


@dataclass(slots=True)
class CacheCounts:
    """What a cache has done: experts that were there when asked for, and that were fetched."""

    hits: int = 0
    misses: int = 0

    @property
    def hit_rate(self) -> float:
        """Return the share of experts that were there."""
        return self.hits / max(self.hits + self.misses, 1)

    def reset(self) -> None:
        """Begin to count anew."""
        self.hits = self.misses = 0


class Counts(Protocol):
    """Counts that may be read; see CacheCounts."""

    @property
    def hits(self) -> int:
        """Return how many experts were there when asked for."""

    @property
    def misses(self) -> int:
        """Return how many were fetched."""

    @property
    def hit_rate(self) -> float:
        """Return the share of experts that were there."""

    def reset(self) -> None:
        """Begin to count anew."""


class Claim(NamedTuple):
    """Slots of the experts of one lease: those that are there, and those to be filled."""

    hits: Mapping[ExpertKey, int]
    misses: Mapping[ExpertKey, int]


class Slots(Protocol):
    """Gives experts slots; whoever keeps the books."""

    @property
    def slots(self) -> int:
        """Return the most experts that may be claimed at once."""

    @property
    def counts(self) -> Counts:
        """Return what has been asked for, and found."""

    def claim(self, layer: int, numbers: Sequence[int]) -> Claim:
        """Give experts of a layer slots."""

    def release(self, layer: int, numbers: Sequence[int]) -> None:
        """End a claim."""

    def discard(self, keys: Sequence[ExpertKey]) -> None:
        """Free the slots of experts that could not be fetched."""


class SlotTable:
    """Slots for experts of all layers. An expert that is claimed stays until it is released."""

    def __init__(self, slots: int, eviction: Eviction) -> None:
        assert slots > 0
        self.counts = CacheCounts()
        self.slots = slots
        self._eviction = eviction
        self._places: dict[ExpertKey, int] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._claims: dict[ExpertKey, int] = {}
        self._visits: dict[int, int] = {}

    @property
    def places(self) -> Mapping[ExpertKey, int]:
        """Return the slot of every expert that has one."""
        return self._places

    def claim(self, layer: int, numbers: Sequence[int]) -> Claim:
        """Give experts of a layer slots; who is claimed by nobody leaves for those not there.

        There have to be slots for all that are claimed at once.
        """
        keys = [ExpertKey(layer, number) for number in numbers]
        self._visits[layer] = visit = self._visits.get(layer, 0) + 1
        for key in keys:
            self._claims[key] = self._claims.get(key, 0) + 1
        assert len(self._claims) <= self.slots, "claims fit the slots"
        hits = {key: self._places[key] for key in keys if key in self._places}
        misses = {key: self._take(key) for key in keys if key not in self._places}
        for key in keys:
            self._eviction.use(key, visit)
        self.counts.hits += len(hits)
        self.counts.misses += len(misses)
        return Claim(hits, misses)

    def release(self, layer: int, numbers: Sequence[int]) -> None:
        """End a claim."""
        for number in numbers:
            key = ExpertKey(layer, number)
            self._claims[key] -= 1
            if not self._claims[key]:
                del self._claims[key]

    def discard(self, keys: Sequence[ExpertKey]) -> None:
        """Free the slots of experts that could not be fetched."""
        for key in keys:
            self._free.append(self._places.pop(key))
            self._eviction.remove(key)

    def _take(self, key: ExpertKey) -> int:
        if not self._free:
            self._free.append(self._places.pop(self._eviction.choose(self._claims)))
        slot = self._places[key] = self._free.pop()
        return slot
