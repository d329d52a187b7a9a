"""Who leaves a cache: never one that is kept, and by frequency fewer that come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from benchmarks.routing import Routing, route_tokens
from sllm.runtime.weights.eviction import ExpertKey, FrequencyEviction, LruEviction
from sllm.runtime.weights.slots import SlotTable

if TYPE_CHECKING:
    from sllm.runtime.weights.eviction import Eviction


def _key(number: int) -> ExpertKey:
    return ExpertKey(0, number)


def _policies() -> list[Eviction]:
    return [LruEviction(), FrequencyEviction(8.0)]


def test_the_least_recently_used_leaves() -> None:
    eviction = LruEviction()
    for visit, number in enumerate((0, 1, 2, 0)):
        eviction.use(_key(number), visit)
    assert [eviction.choose(()) for _ in range(3)] == [_key(1), _key(2), _key(0)]


def test_often_used_of_late_outweighs_just_used() -> None:
    eviction = FrequencyEviction(8.0)
    for visit, number in enumerate((0, 0, 0, 1, 2)):
        eviction.use(_key(number), visit)
    assert [eviction.choose(()) for _ in range(3)] == [_key(1), _key(2), _key(0)]


def test_old_uses_count_for_less_and_less() -> None:
    eviction = FrequencyEviction(1.0)
    for visit, number in ((0, 0), (1, 0), (2, 0), (30, 1)):
        eviction.use(_key(number), visit)
    assert eviction.choose(()) == _key(0)


def test_what_an_expert_was_worth_is_known_when_it_comes_back() -> None:
    eviction = FrequencyEviction(8.0)
    for visit in range(4):
        eviction.use(_key(0), visit)
    assert eviction.choose(()) == _key(0)
    for visit, number in ((4, 1), (4, 1), (4, 0)):
        eviction.use(_key(number), visit)
    assert eviction.choose(()) == _key(1)


@pytest.mark.parametrize("policy", [0, 1])
@given(st.lists(st.tuples(st.sampled_from("ucr"), st.integers(0, 5)), max_size=60))
def test_only_what_is_there_and_not_kept_leaves(policy: int, steps: list[tuple[str, int]]) -> None:
    eviction, there = _policies()[policy], set()
    for visit, (step, number) in enumerate(steps):
        if step == "u":
            eviction.use(_key(number), visit)
            there.add(_key(number))
        elif step == "r" and _key(number) in there:
            eviction.remove(_key(number))
            there.remove(_key(number))
        elif step == "c" and there - {_key(number)}:
            gone = eviction.choose({_key(number)})
            assert gone in there - {_key(number)}
            there.remove(gone)


def _hit_rate(routing: Routing, slots_per_layer: int, eviction: Eviction) -> float:
    table = SlotTable(slots_per_layer * routing.layers, eviction)
    for chosen in route_tokens(routing, tokens=400, seed=1):
        for layer, numbers in enumerate(chosen.tolist()):
            table.claim(layer, numbers)
            table.release(layer, numbers)
    return table.counts.hit_rate


@pytest.mark.parametrize("slots", [16, 32, 64])
def test_by_frequency_more_experts_are_there_than_by_recency(slots: int) -> None:
    routing = Routing(experts=256, chosen=8, layers=2)
    by_recency = _hit_rate(routing, slots, LruEviction())
    assert _hit_rate(routing, slots, FrequencyEviction(slots / 8)) >= by_recency > 0.2
