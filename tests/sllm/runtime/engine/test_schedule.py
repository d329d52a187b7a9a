"""What runs fits the cache, the oldest always gets on, and no one is forgotten."""

from __future__ import annotations

from sllm.runtime.cache.sequence import PageBooks
from sllm.runtime.engine.active import ActiveRequest
from sllm.runtime.engine.schedule import EngineLimits, Schedule
from tests.sllm.runtime.engine.listening import Listener, make_request

PAGE = 4


def _schedule(pages: int, **limits: int) -> Schedule:
    chosen = EngineLimits(**{"context_tokens": 16, "reserve_tokens": PAGE, **limits})
    return Schedule(PageBooks(pages=pages, page_tokens=PAGE, slots=chosen.parallel), chosen)


def _add(schedule: Schedule, number: int, tokens: int) -> ActiveRequest:
    request = make_request([number] * tokens)
    active = ActiveRequest(number, request, Listener(), context_tokens=16)
    schedule.add(active)
    return active


def _compute(schedule: Schedule) -> list[tuple[int, int]]:
    """Plan a pass as if it were computed, each answer growing; return numbers and tokens."""
    shares = schedule.plan()
    for share in shares:
        share.sequence.length += len(share.tokens)
        if share.complete:
            share.request.ids.append(2)
    return [(share.request.number, len(share.tokens)) for share in shares]


def test_steps_go_first_and_prompts_share_what_is_left() -> None:
    schedule = _schedule(20, pass_tokens=8)
    for number, tokens in enumerate((3, 7, 6)):
        _add(schedule, number, tokens)
    assert _compute(schedule) == [(0, 3), (1, 5)]
    assert _compute(schedule) == [(0, 1), (1, 2), (2, 5)]
    assert _compute(schedule) == [(0, 1), (1, 1), (2, 1)]


def test_a_request_waits_for_room_for_its_prompt_and_some_answer() -> None:
    schedule = _schedule(4)
    first, _ = _add(schedule, 0, 4), _add(schedule, 1, 5)
    assert _compute(schedule) == [(0, 4)]
    assert (schedule.running, schedule.waiting) == (1, 1)
    schedule.remove(first)
    assert _compute(schedule) == [(1, 5)]


def test_the_youngest_gives_way_and_comes_back_by_age() -> None:
    schedule = _schedule(4, reserve_tokens=1)
    old, young = _add(schedule, 0, 7), _add(schedule, 1, 7)
    assert _compute(schedule) == [(0, 7), (1, 7)]
    assert _compute(schedule) == [(0, 1), (1, 1)]
    assert _compute(schedule) == [(0, 1)]
    assert young.sequence is None
    later = _add(schedule, 2, 1)
    while len(old.ids) < 16:
        assert _compute(schedule) == [(0, 1)]
    schedule.remove(old)
    assert _compute(schedule) == [(2, 1), (1, 9)]
    schedule.remove(later)
    schedule.remove(young)
    assert _compute(schedule) == []


def test_a_request_begins_where_another_one_is_or_was() -> None:
    schedule = _schedule(8)
    first = _add(schedule, 0, 9)
    assert _compute(schedule) == [(0, 9)]
    same = make_request([0] * 9 + [7, 7])
    schedule.add(ActiveRequest(1, same, Listener(), context_tokens=16))
    assert _compute(schedule) == [(0, 1), (1, 3)]
    schedule.remove(first)
    again = _add(schedule, 0, 8)
    assert _compute(schedule) == [(1, 1), (0, 4)], "the last token is computed in any case"
    assert again.cached == 4


def test_nobody_begins_with_what_failed() -> None:
    schedule = _schedule(8)
    failing = _add(schedule, 0, 9)
    assert _compute(schedule) == [(0, 9)]
    schedule.remove(failing, failed=True)
    _add(schedule, 0, 9)
    assert _compute(schedule) == [(0, 9)]


def test_one_that_gave_way_goes_on_from_what_is_left_of_its_pages() -> None:
    schedule = _schedule(4, reserve_tokens=1)
    old, young = _add(schedule, 0, 7), _add(schedule, 1, 7)
    assert [len(_compute(schedule)) for _ in range(3)] == [2, 2, 1]
    schedule.remove(old)
    assert _compute(schedule) == [(1, 5)], "its first page is still there"
    assert young.cached == 0, "that counts only where it first ran"
