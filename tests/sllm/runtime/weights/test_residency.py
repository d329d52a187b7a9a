"""What is used most stays where it is fastest, evenly spread; too small a budget is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm.core.errors import BudgetError
from sllm.runtime.weights.residency import Budgets, Needs, Residency, plan_residency


def _needs(*layers: int, ends: int = 0, **other: int) -> Needs:
    return Needs(layer_bytes=layers, ends_bytes=ends, **other)


def _plan(needs: Needs, device: int | None, host: int | None = None, slots: int = 2) -> Residency:
    budgets = Budgets(device_bytes=device, host_bytes=host, has_host=True)
    return plan_residency(needs, budgets, slots=slots)


def test_without_a_budget_everything_stays() -> None:
    needs = _needs(10, 10, 10, ends=7, other_bytes=2, experts=6, expert_bytes=5, experts_chosen=2)
    plan = _plan(needs, None)
    assert (plan.resident, plan.streamed, plan.slots) == ((0, 1, 2), (), 0)
    assert (plan.expert_slots, plan.host_expert_slots) == (6, 0)
    assert (plan.device_bytes, plan.host_bytes) == (69, 0)


def test_streamed_layers_share_buffers_and_residents_are_spread() -> None:
    plan = plan_residency(_needs(*[10] * 8, ends=5), Budgets(device_bytes=50), slots=2)
    assert plan.resident == (2, 6)
    assert plan.disk == plan.streamed == (0, 1, 3, 4, 5, 7)
    assert (plan.slots, plan.device_bytes, plan.staging, plan.host_bytes) == (2, 45, 0, 0)


def test_what_the_host_has_no_room_for_comes_from_disk_in_between() -> None:
    plan = _plan(_needs(*[10] * 8), 20, 60)
    assert plan.pinned == (1, 3, 5, 7)
    assert plan.disk == (0, 2, 4, 6)
    assert (plan.staging, plan.host_bytes) == (2, 60)
    assert _plan(_needs(*[10] * 8), 20, None).pinned == tuple(range(8))


def test_experts_get_what_is_left_after_the_layers() -> None:
    needs = _needs(10, 10, experts=20, expert_bytes=3, experts_chosen=2)
    plan = _plan(needs, 20 + 7 * 3, 9 * 3)
    assert (plan.resident, plan.expert_slots, plan.host_expert_slots) == ((0, 1), 7, 9)
    least = _plan(needs, 10 + 3, 10 + 3)
    assert (least.resident, least.expert_slots, least.host_expert_slots) == ((), 1, 1)


@pytest.mark.parametrize("has_host", [False, True])
def test_the_least_budget_is_named_and_suffices(*, has_host: bool) -> None:
    needs = _needs(10, 30, 10, ends=5, other_bytes=4, experts=3, expert_bytes=2, experts_chosen=2)
    budgets = Budgets(device_bytes=41, host_bytes=32, has_host=has_host)
    plan = plan_residency(needs, budgets)
    assert (plan.resident, plan.slots, plan.device_bytes) == ((), 1, 41)
    with pytest.raises(BudgetError, match="at least 41 B on its device"):
        plan_residency(needs, Budgets(device_bytes=40))
    with pytest.raises(BudgetError, match="at least 32 B of host memory"):
        plan_residency(needs, Budgets(device_bytes=41, host_bytes=31, has_host=True))


_SIZES = st.integers(1, 100)


@given(
    st.builds(
        Needs,
        layer_bytes=st.lists(_SIZES, min_size=1, max_size=10).map(tuple),
        ends_bytes=_SIZES,
        other_bytes=_SIZES,
        experts=st.integers(1, 9),
        expert_bytes=_SIZES,
        experts_chosen=st.integers(1, 4),
    ),
    st.integers(0, 1200),
    st.integers(0, 600),
    st.integers(1, 4),
)
def test_a_plan_keeps_to_its_budgets(needs: Needs, device: int, host: int, slots: int) -> None:
    largest = max(needs.layer_bytes)
    least = needs.ends_bytes + needs.other_bytes + largest + needs.expert_bytes
    try:
        plan = _plan(needs, device, host, slots)
    except BudgetError:
        assert device < least or host < largest + needs.expert_bytes
        return
    assert plan.device_bytes <= device
    assert plan.host_bytes <= host
    layers = (*plan.resident, *plan.pinned, *plan.disk)
    assert sorted(layers) == list(range(len(needs.layer_bytes)))
    assert plan.slots <= slots
    assert bool(plan.slots) == bool(plan.streamed)
    assert bool(plan.staging) == bool(plan.disk)
    assert 1 <= plan.expert_slots <= needs.experts
    assert bool(plan.host_expert_slots) == (plan.expert_slots < needs.experts)
