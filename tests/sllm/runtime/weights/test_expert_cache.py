"""A lease has every expert asked for, those that are there first, and survives what fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.runtime.weights.eviction import ExpertKey, LruEviction
from sllm.runtime.weights.expert_cache import CachedExperts, ExpertCache
from sllm.runtime.weights.slots import SlotTable
from sllm_store.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _Fetch:
    """Experts that arrive when they are waited for, unless they are broken."""

    def __init__(self, memory: dict[int, ExpertKey], slots: Mapping[ExpertKey, int]) -> None:
        self._memory = memory
        self._slots = slots
        self._arrived: set[ExpertKey] = set()

    def wait(self, key: ExpertKey) -> None:
        if key.number == _Fetcher.BROKEN:
            raise ReadError("the disk is gone")
        self._memory[self._slots[key]] = key
        self._arrived.add(key)

    def end(self) -> Sequence[ExpertKey]:
        return [key for key in self._slots if key not in self._arrived]


class _Fetcher:
    BROKEN = 13

    def __init__(self) -> None:
        self.memory: dict[int, ExpertKey] = {}
        self.fetched: list[list[int]] = []

    def fetch(self, slots: Mapping[ExpertKey, int]) -> _Fetch:
        self.fetched.append([key.number for key in slots])
        return _Fetch(self.memory, slots)


def _open(slots: int) -> tuple[_Fetcher, ExpertCache[tuple[ExpertKey, int]]]:
    fetcher = _Fetcher()
    table = SlotTable(slots, LruEviction())
    return fetcher, ExpertCache(table, fetcher, lambda key, slot: (key, slot))


def test_all_that_is_missing_is_fetched_at_once_and_comes_last() -> None:
    fetcher, cache = _open(4)
    layer = CachedExperts(cache, 2)
    with layer.lease([1, 3]) as experts:
        assert list(experts) == [1, 3]
        assert len(experts) == 2
        dict(experts)
    with layer.lease([0, 1, 2, 3]) as experts:
        assert list(experts) == [1, 3, 0, 2]
        for number, (key, slot) in experts.items():
            assert key == fetcher.memory[slot] == ExpertKey(2, number)
    assert fetcher.fetched == [[1, 3], [0, 2]]
    assert (cache.counts.hits, cache.counts.misses) == (2, 4)
    assert layer.capacity == cache.capacity == 4


def test_a_fetch_that_fails_fails_its_lease_alone() -> None:
    fetcher, cache = _open(3)
    with cache.lease(0, [1]) as experts:
        dict(experts)
    with pytest.raises(ReadError), cache.lease(0, [1, 2, _Fetcher.BROKEN]) as experts:
        dict(experts)
    with cache.lease(0, [1, 2, 4]) as experts:
        for number, (key, slot) in experts.items():
            assert key == fetcher.memory[slot] == ExpertKey(0, number)
    assert fetcher.fetched == [[1], [2, 13], [4]]


def test_an_expert_that_nobody_waited_for_is_fetched_anew() -> None:
    fetcher, cache = _open(2)
    with pytest.raises(ZeroDivisionError), cache.lease(0, [1, 2]):
        raise ZeroDivisionError
    with cache.lease(0, [1, 2]) as experts:
        dict(experts)
    assert fetcher.fetched == [[1, 2], [1, 2]]


def test_what_limits_a_lease_may_be_elsewhere() -> None:
    table = SlotTable(4, LruEviction())
    assert ExpertCache(table, _Fetcher(), lambda key, slot: slot, capacity=2).capacity == 2
