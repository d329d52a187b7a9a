"""Claims find their experts, or slots for them, and what is claimed stays."""

from __future__ import annotations

from hypothesis import given, strategies as st

from sllm.runtime.weights.eviction import ExpertKey, FrequencyEviction, LruEviction
from sllm.runtime.weights.slots import SlotTable


def test_what_was_fetched_is_there_the_next_time() -> None:
    table = SlotTable(3, LruEviction())
    first = table.claim(0, [4, 5])
    assert not first.hits
    table.release(0, [4, 5])
    second = table.claim(0, [5, 6])
    assert second.hits == {ExpertKey(0, 5): first.misses[ExpertKey(0, 5)]}
    assert (table.counts.hits, table.counts.misses, table.counts.hit_rate) == (1, 3, 0.25)


def test_what_could_not_be_fetched_is_asked_for_anew() -> None:
    table = SlotTable(2, FrequencyEviction(4.0))
    missed = list(table.claim(0, [1, 2]).misses)
    table.release(0, [1, 2])
    table.discard(missed)
    assert not table.places
    assert len(table.claim(0, [1, 2]).misses) == 2


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 7), min_size=1)), max_size=30),
)
def test_no_slot_has_two_experts_and_no_claim_loses_one(
    slots: int, visits: list[tuple[int, set[int]]]
) -> None:
    table = SlotTable(slots, FrequencyEviction(3.0))
    for layer, wanted in visits:
        numbers = sorted(wanted)[:slots]
        claim = table.claim(layer, numbers)
        claimed = {**claim.hits, **claim.misses}
        assert sorted(claimed) == [ExpertKey(layer, number) for number in numbers]
        assert all(table.places[key] == slot for key, slot in claimed.items())
        assert len(set(table.places.values())) == len(table.places) <= slots
        table.release(layer, numbers)
