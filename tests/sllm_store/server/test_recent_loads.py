"""What the last loads say about the next one."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest
from hypothesis import given, strategies as st

from sllm_store.server.estimate import Demand
from sllm_store.server.recent_loads import KEPT, WAYS_MAX, Pace, RecentLoads


def demand(model: str, size_bytes: int = 1000) -> Demand:
    return Demand(model=model, sources={"cache": size_bytes})


def expected(one: Demand) -> float:
    return one.size_bytes / 1000


def test_what_is_particular_about_a_model_is_the_median_of_its_last_loads() -> None:
    recent = RecentLoads()
    assert recent.factor("way", "a", expected) == 1
    for seconds in (9.0, *[2.0] * (KEPT - 1), 7.0):  # The first is forgotten, the last is odd.
        recent.add("way", demand("a"), seconds)
    assert 1.4 < recent.factor("way", "a", expected) < 2
    assert recent.factor("other way", "a", expected) == 1
    recent.add("way", demand("a"), 2.0)
    for _ in range(KEPT):
        recent.add("way", demand("a"), 2.0)
    assert recent.factor("way", "a", expected) == pytest.approx(2, rel=0.06)


@given(st.lists(st.floats(-0.7, 0.7), min_size=KEPT, max_size=KEPT))
def test_the_more_loads_of_a_model_differ_the_less_they_say(offs: list[float]) -> None:
    """Never the other way, nor more than the loads themselves."""
    recent, agreeing = RecentLoads(), RecentLoads()
    middle = statistics.median(offs)
    for off in offs:
        recent.add("way", demand("a"), math.exp(off))
        agreeing.add("way", demand("a"), math.exp(middle))
    found = math.log(recent.factor("way", "a", expected))
    most = math.log(agreeing.factor("way", "a", expected))
    assert min(0.0, most) - 1e-9 <= found <= max(0.0, most) + 1e-9
    assert abs(most) <= abs(middle) + 1e-9


def test_what_scatters_by_nature_is_hardly_followed() -> None:
    recent = RecentLoads()
    for model, seconds in (("a", (0.8, 1.0, 1.25)), ("b", (1.3, 0.9, 1.1)), ("c", (1.2, 1.0, 0.8))):
        for took in seconds:
            recent.add("way", demand(model), took)
    assert recent.factor("way", "b", expected) == pytest.approx(1.03, abs=0.03)


def test_a_model_that_was_not_loaded_so_is_like_others_that_were() -> None:
    recent = RecentLoads()
    for model in "abcdefgh":
        recent.add("way", demand(model, 2000), 4.0)
    assert recent.factor("way", "new", expected) == pytest.approx(2, rel=0.1)


def test_models_that_were_loaded_long_ago_are_forgotten() -> None:
    recent = RecentLoads()
    recent.add("way 0", demand("a"), 4.0)
    for number in range(1, WAYS_MAX + 1):
        recent.add(f"way {number}", demand("a"), 4.0)
    assert recent.factor("way 0", "a", expected) == 1
    assert recent.factor("way 1", "a", expected) > 1


def errors(ratios: list[float]) -> list[float]:
    """What the pace predicted wrong of each, as a part of it, once it had some."""
    pace = Pace()
    found = []
    for ratio in ratios:
        found.append(abs(pace.factor / ratio - 1))
        pace.learn(ratio)
    return found[8:]


def test_a_disk_that_drifts_is_followed_and_one_that_flickers_is_not() -> None:
    random = Random(1)
    drifting, at = [], 0.0
    for _ in range(60):
        at = 0.98 * at + random.gauss(0, 0.1)
        drifting.append(math.exp(at))
    flickering = [math.exp(random.gauss(0, 0.05)) for _ in range(60)]
    assert statistics.median(errors(drifting)) < 0.1
    assert statistics.median(abs(1 - 1 / ratio) for ratio in drifting) > 0.15  # Not followed.
    unfollowed = statistics.median(abs(1 - 1 / ratio) for ratio in flickering)
    assert statistics.median(errors(flickering)) < 1.4 * unfollowed


def test_one_load_that_took_forever_does_not_last() -> None:
    pace = Pace()
    for _ in range(5):
        pace.learn(1.0)
    pace.learn(1e6)
    assert pace.factor <= 4
    for _ in range(4):
        pace.learn(1.0)
    assert pace.factor == pytest.approx(1, rel=0.2)
