"""A device that keeps the books of its experts fetches what is chosen, and counts it."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.weights.device_books import DeviceBooks, share_slots
from sllm.runtime.weights.eviction import ExpertKey
from tests.sllm.runtime.weights.deferred_lane import DeferredLane

EXPERTS, LAYERS, SLOTS, SIZE_BYTES = 6, 2, 7, 64


class Case:
    """Experts in host memory, each of its own bytes, under books over a few slots."""

    def __init__(self) -> None:
        total = EXPERTS * LAYERS
        self.source = torch.arange(total, dtype=torch.uint8).repeat_interleave(SIZE_BYTES)
        self.source = self.source.view(total, SIZE_BYTES)
        self.slots = torch.full((SLOTS, SIZE_BYTES), 255, dtype=torch.uint8)
        # The host has them the other way round.
        self.places = {
            layer: [total - 1 - (layer * EXPERTS + number) for number in range(EXPERTS)]
            for layer in range(LAYERS)
        }
        memories = (self.source, self.slots)
        self.books = DeviceBooks(DeferredLane(), self.places, memories, chosen=2)

    def take(self, layer: int, numbers: list[int]) -> tuple[list[int], list[int]]:
        """Return slots that are there, and that come, having looked at what is in them."""
        there, coming = (
            slots.tolist() for slots in self.books.seats[layer].take(torch.tensor(numbers))
        )
        for number, *slots in zip(numbers, there, coming, strict=True):
            assert (self.slots[max(slots)] == self.places[layer][number]).all()
        return there, coming


def test_what_is_missing_is_fetched_before_its_turn() -> None:
    case = Case()
    there, coming = case.take(1, [4, 2])
    assert there == [-1, -1]
    again, new = case.take(1, [5, 4])
    assert again == [-1, coming[0]]
    assert new[1] == -1
    assert (case.books.counts.hits, case.books.counts.misses) == (1, 3)
    assert case.books.counts.hit_rate == 0.25


def test_layers_have_slots_of_their_own() -> None:
    case = Case()
    assert case.books.slots == 3
    assert [case.books.seats[layer].room for layer in range(LAYERS)] == [3, 4]
    first, second = (set(case.take(layer, [0, 1, 2])[1]) for layer in range(LAYERS))
    assert not first & second
    assert case.take(0, [2, 1, 0])[1] == [-1, -1, -1]


def test_a_lease_of_the_host_is_in_the_same_books() -> None:
    case = Case()
    _, (slot, _) = case.take(0, [3, 1])
    claim = case.books.claim(0, [3, 0])
    assert claim.hits == {ExpertKey(0, 3): slot}
    assert list(claim.misses) == [ExpertKey(0, 0)]
    case.books.release(0, [3, 0])
    case.books.discard(list(claim.misses))
    assert case.take(0, [3, 1])[0] == [-1, -1]


def test_counts_begin_anew_when_they_are_reset() -> None:
    case = Case()
    case.take(0, [1])
    case.books.counts.reset()
    case.take(0, [1])
    assert (case.books.counts.hits, case.books.counts.misses) == (1, 0)


@pytest.mark.parametrize(("slots", "layers"), [(7, 2), (60, 60), (61, 60), (5, 1)])
def test_slots_are_shared_evenly_and_none_is_left(*, slots: int, layers: int) -> None:
    rooms = share_slots(slots, layers)
    assert [slot for room in rooms for slot in room] == list(range(slots))
    assert max(map(len, rooms)) - min(map(len, rooms)) <= 1
