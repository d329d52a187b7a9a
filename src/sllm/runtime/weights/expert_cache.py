"""ExpertCache: experts of all layers in a few slots, fetched when a router asks for them.

Of E bytes asked for, those not there take (1 - hit rate) * E / bandwidth. All that a lease misses
is fetched at once, and whoever iterates over a lease gets what is there first, so that it computes
meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sllm.runtime.weights.eviction import ExpertKey
from sllm.runtime.weights.grouped import CachedGroup, SeatedGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sllm.runtime.weights.grouped import Seats, SlotProducts
    from sllm.runtime.weights.slots import Counts, Slots
    from sllm.runtime.weights.source import ExpertGroup

_T = TypeVar("_T")


class Fetch(Protocol):
    """Experts on their way into slots."""

    def wait(self, key: ExpertKey) -> None:
        """Return once an expert may be used; raise if it could not be fetched."""

    def end(self) -> Sequence[ExpertKey]:
        """Return the experts that did not arrive; once this returns nobody writes to slots."""


class Fetcher(Protocol):
    """Brings experts into slots from wherever they are."""

    def fetch(self, slots: Mapping[ExpertKey, int]) -> Fetch:
        """Begin to fetch experts, all of one layer, into slots."""


class LeasedExperts(Mapping[int, _T]):
    """Experts of a lease by number; first those that are there. Taking another one waits for it.

    there, coming: the slots of those that are there, and of those that are fetched.
    """

    def __init__(
        self,
        there: Mapping[int, int],
        coming: Mapping[int, int],
        view: Callable[[int, int], _T],
        waiting: _Waiting | None,
    ) -> None:
        self.there = there
        self.coming = coming
        self._view = view
        self._waiting = waiting

    def __getitem__(self, number: int) -> _T:
        if number in self.there:
            return self._view(number, self.there[number])
        slot = self.coming[number]
        self.wait(number)
        return self._view(number, slot)

    def __iter__(self) -> Iterator[int]:
        yield from self.there
        yield from self.coming

    def __len__(self) -> int:
        return len(self.there) + len(self.coming)

    def wait(self, number: int) -> None:
        """Let what computes wait for an expert that is coming; raise if it could not be fetched."""
        assert self._waiting is not None, "what is not there is fetched"
        self._waiting.wait(number)


class _Waiting:
    """A fetch for one layer, and the time that was waited for it."""

    def __init__(self, fetch: Fetch, layer: int) -> None:
        self.wait_s = 0.0
        self._fetch = fetch
        self._layer = layer

    def wait(self, number: int) -> None:
        started_s = time.monotonic()
        self._fetch.wait(ExpertKey(self._layer, number))
        self.wait_s += time.monotonic() - started_s

    def end(self) -> Sequence[ExpertKey]:
        return self._fetch.end()


class ExpertCache(Generic[_T]):
    """Leases experts, one lease at a time. What is leased is never evicted.

    view: makes of a slot, and the expert that is in it, what is leased. capacity: the most experts
    that one lease may have, if it is not the slots that limit it.
    """

    def __init__(
        self,
        table: Slots,
        fetcher: Fetcher,
        view: Callable[[ExpertKey, int], _T],
        *,
        capacity: int | None = None,
    ) -> None:
        self.wait_s = 0.0
        self.capacity = min(table.slots, capacity or table.slots)
        self._table = table
        self._fetcher = fetcher
        self._view = view
        self._values: dict[int, tuple[ExpertKey, _T]] = {}
        self._leased = False

    @property
    def counts(self) -> Counts:
        """Return what has been asked for, and found."""
        return self._table.counts

    @contextmanager
    def lease(self, layer: int, numbers: Sequence[int]) -> Iterator[LeasedExperts[_T]]:
        """Return experts of a layer (distinct) for as long as the context is open.

        Raises what fetching them raised, when one of them is taken; they are asked for anew by
        the next lease then.
        """
        assert not self._leased, "one lease at a time"
        hits, misses = self._table.claim(layer, numbers)
        self._leased = True
        waiting = None
        try:
            if misses:
                waiting = _Waiting(self._fetcher.fetch(misses), layer)
            yield LeasedExperts(
                {key.number: slot for key, slot in hits.items()},
                {key.number: slot for key, slot in misses.items()},
                lambda number, slot: self._value(ExpertKey(layer, number), slot),
                waiting,
            )
        finally:
            self._leased = False
            self._table.release(layer, numbers)
            self._table.discard(list(misses) if waiting is None else waiting.end())
            self.wait_s += 0.0 if waiting is None else waiting.wait_s

    def _value(self, key: ExpertKey, slot: int) -> _T:
        """Return what a slot is leased as, made once for each expert that comes into it."""
        found = self._values.get(slot)
        if found is None or found[0] != key:
            found = self._values[slot] = (key, self._view(key, slot))
        return found[1]


class CachedExperts(Generic[_T]):
    """The experts of one layer, by way of the cache of all. `products`: see SlotProducts.

    seats: the layer's slots, where the device keeps the books of the cache.
    """

    def __init__(
        self,
        cache: ExpertCache[_T],
        layer: int,
        products: SlotProducts | None = None,
        seats: Seats | None = None,
    ) -> None:
        self._cache = cache
        self._layer = layer
        self.capacity = cache.capacity
        self.grouped: ExpertGroup | None = None
        if products is not None:
            by_host = CachedGroup(products, self)
            self.grouped = by_host if seats is None else SeatedGroup(products, seats, by_host)

    def lease(self, numbers: Sequence[int]) -> AbstractContextManager[LeasedExperts[_T]]:
        """Return these experts for as long as the context is open."""
        return self._cache.lease(self._layer, numbers)
