"""The same object has what was made of it; an equal one does not."""

from __future__ import annotations

from sllm.runtime.weights.recurring import Recurring


def test_the_same_object_is_used_once() -> None:
    made: list[list[int]] = []

    def make(of: list[int]) -> int:
        made.append(of)
        return len(made)

    kept: Recurring[list[int], int] = Recurring(2)
    first, equal = [1], [1]
    assert [kept.get(of, make) for of in (first, equal, first, equal)] == [1, 2, 1, 2]
    assert made == [first, equal]


def test_the_oldest_is_let_go() -> None:
    kept: Recurring[list[int], list[int]] = Recurring(2)
    objects = [[1], [2], [3]]
    for of in objects:
        kept.get(of, list.copy)
    again = kept.get(objects[2], list.copy)
    assert again is kept.get(objects[2], list.copy)
    before = kept.get(objects[1], list.copy)
    kept.get(objects[0], list.copy)
    assert kept.get(objects[1], list.copy) is not before
