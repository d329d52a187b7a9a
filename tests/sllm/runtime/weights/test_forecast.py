"""A forecast counts every byte once where it lies, and all that a token has to wait for."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm.runtime.weights.forecast import Forecast, Rates, TierBytes, TokenNeeds, plan_forecast
from sllm.runtime.weights.residency import Budgets, Needs, plan_residency

RATES = Rates(memory=1000.0, link=100.0, disk=10.0)


def _forecast(
    needs: Needs,
    budgets: Budgets,
    token: TokenNeeds | None = None,
    *,
    rates: Rates = RATES,
    hit_rate: float | None = None,
) -> Forecast:
    return plan_forecast(
        needs,
        plan_residency(needs, budgets, slots=1),
        rates,
        has_host=budgets.has_host,
        token=token or TokenNeeds(),
        hit_rate=hit_rate,
    )


def test_what_stays_is_bound_by_memory_alone() -> None:
    needs = Needs(layer_bytes=(40, 40), ends_bytes=30)
    found = _forecast(needs, Budgets(has_host=True), TokenNeeds(unread_bytes=10))
    assert found.stored == TierBytes(device=110, host=0, disk=0)
    assert found.seconds == {"device": 0.1}
    assert (found.bound, found.tokens_per_s) == ("device", 10.0)


def test_what_is_in_host_memory_crosses_the_link() -> None:
    needs = Needs(layer_bytes=(40,) * 4, ends_bytes=20)
    found = _forecast(needs, Budgets(device_bytes=100, has_host=True))
    assert found.stored == TierBytes(device=60, host=120, disk=0)
    assert found.seconds == {"device": 0.18, "host": 1.2}
    assert found.bound == "host"


def test_what_is_on_disk_is_read_and_crosses_the_link() -> None:
    needs = Needs(layer_bytes=(40,) * 4, ends_bytes=20)
    found = _forecast(needs, Budgets(device_bytes=100, host_bytes=80, has_host=True))
    assert found.stored == TierBytes(device=60, host=40, disk=80)
    assert (found.crossing_bytes, found.fetched_bytes) == (120, 80)
    assert (found.bound, found.tokens_per_s) == ("disk", 1 / 8)


def test_a_cpu_has_no_link() -> None:
    needs = Needs(layer_bytes=(40,) * 4, ends_bytes=20)
    found = _forecast(needs, Budgets(device_bytes=100))
    assert found.stored == TierBytes(device=60, host=0, disk=120)
    assert found.seconds == {"device": 0.18, "disk": 12.0}


def test_experts_are_missed_as_often_as_slots_are_few_until_that_is_measured() -> None:
    needs = Needs(layer_bytes=(10,), ends_bytes=10, experts=8, expert_bytes=10, experts_chosen=2)
    budgets = Budgets(device_bytes=40, host_bytes=30, has_host=True)
    token = TokenNeeds(experts=2)
    found = _forecast(needs, budgets, token)
    assert found.stored == TierBytes(device=40, host=30, disk=30)
    assert found.hit_rate == 0.25
    assert (found.read_bytes, found.crossing_bytes, found.fetched_bytes) == (40, 15, 7.5)
    measured = _forecast(needs, budgets, token, hit_rate=0.75)
    assert (measured.crossing_bytes, measured.fetched_bytes) == (5, 2.5)
    everything = _forecast(needs, Budgets(has_host=True), token, hit_rate=0.1)
    assert (everything.hit_rate, everything.crossing_bytes) == (1.0, 0)


@pytest.mark.parametrize("rates", [Rates(), Rates(memory=1.0), Rates(memory=1.0, link=1.0)])
def test_without_a_rate_that_matters_nothing_is_promised(rates: Rates) -> None:
    needs = Needs(layer_bytes=(40,) * 4, ends_bytes=20)
    budgets = Budgets(device_bytes=100, host_bytes=80, has_host=True)
    found = _forecast(needs, budgets, rates=rates)
    assert (found.bound, found.tokens_per_s) == (None, None)
    assert set(found.seconds) == {"device", "host", "disk"}


@given(
    layers=st.lists(st.integers(1, 100), min_size=1, max_size=9),
    experts=st.integers(0, 20),
    device=st.integers(0, 1500),
    host=st.integers(0, 1500),
    has_host=st.booleans(),
)
def test_every_byte_lies_somewhere(
    layers: list[int], experts: int, device: int, host: int, *, has_host: bool
) -> None:
    needs = Needs(
        layer_bytes=tuple(layers),
        ends_bytes=5,
        experts=experts,
        expert_bytes=10 if experts else 0,
        experts_chosen=min(experts, 3),
    )
    least = 5 + max(layers) + 10 * min(experts, 3)
    budgets = Budgets(
        device_bytes=least + device, host_bytes=max(layers) + 30 + host, has_host=has_host
    )
    stored = _forecast(needs, budgets, TokenNeeds(experts=min(experts, 3))).stored
    assert stored.device + stored.host + stored.disk == 5 + sum(layers) + 10 * experts
    assert min(stored.device, stored.host, stored.disk) >= 0
