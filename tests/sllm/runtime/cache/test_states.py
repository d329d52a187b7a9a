"""A slot has one copy at a time, and the copy that was of no use for longest gives way."""

from __future__ import annotations

import torch

from sllm.runtime.cache.memory import DeltaMemory
from sllm.runtime.cache.states import Saved, SpareStates
from tests.sllm.runtime.tiny_models import make_model


def test_copies_with_a_name_give_way_the_oldest_first() -> None:
    states = SpareStates([5, 6])
    for name in (b"a", b"b"):
        slot = states.take()
        assert slot is not None
        states.keep(slot, name)
    states.restore(b"a", 0)
    assert states.take() == 5, "a was used last, so b gives way"
    assert b"b" not in states
    assert states.take() == 6
    assert states.take() is None
    states.give_back(6)
    assert states.take() == 6


def test_a_name_has_one_copy() -> None:
    states = SpareStates([5, 6])
    for _ in range(2):
        slot = states.take()
        assert slot is not None
        states.keep(slot, b"a")
    assert states.take() == 5, "the second copy of a name was freed"
    states.drop(b"a")
    states.drop(b"a")
    assert states.take() == 6


def test_the_longest_beginning_with_a_copy_is_found() -> None:
    states = SpareStates([5])
    assert states.reach([b"a", b"b"]) == 0
    states.keep(5, b"b")
    assert states.reach([b"a", b"b", b"c"]) == 2
    assert states.reach([b"a"]) == 0


def test_states_are_copied_in_the_order_that_was_asked_for() -> None:
    memory = make_model("qwen3-next").memory(sequences=2, spares=1)
    states = memory.books.states
    assert states is not None
    layer = next(layer for layer in memory.layers if isinstance(layer, DeltaMemory))
    for slot in range(3):
        layer.recurrent[slot] = slot
        layer.convolved[slot] = slot
    states.copy(0, 2)
    states.copy(1, 0)
    states.copy(2, 1)
    memory.copy_states()
    memory.copy_states()
    for part in (layer.recurrent, layer.convolved):
        assert [float(part[slot].max()) for slot in range(3)] == [1, 0, 0]
        assert torch.equal(part[1], part[2])


def test_wrong_guesses_take_a_state_back_to_where_it_was_saved() -> None:
    memory = make_model("qwen3-next").memory(sequences=1, spares=1)
    states, sequence = memory.books.states, memory.open()
    assert states is not None
    sequence.length = 8
    assert sequence.can_take_back(9)
    assert not sequence.can_take_back(9), "there is one slot"
    sequence.length = 13
    sequence.settle(11)
    assert (sequence.length, sequence.again) == (9, 2)
    assert states.copies() == [(1, 0)]
    assert sequence.take_saved() == Saved(position=9, slot=1)
    sequence.length = 12
    sequence.settle(12)
    assert (sequence.length, sequence.again) == (12, 0)


def test_a_sequence_that_ends_frees_its_copy() -> None:
    memory = make_model("qwen3-next").memory(sequences=1, spares=1)
    states, sequence = memory.books.states, memory.open()
    assert states is not None
    assert sequence.can_take_back(1)
    assert states.take() is None
    sequence.close()
    assert states.take() == 1
