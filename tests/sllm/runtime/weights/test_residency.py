"""As many layers stay as the budget allows, spread evenly; too small a budget is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm.core.errors import BudgetError
from sllm.runtime.weights.residency import plan_residency


def test_without_a_budget_everything_stays() -> None:
    plan = plan_residency([10] * 4, ends_bytes=7, budget_bytes=None)
    assert plan.resident == (0, 1, 2, 3)
    assert (plan.streamed, plan.slots, plan.size_bytes) == ((), 0, 47)


def test_streamed_layers_share_buffers_and_residents_are_spread() -> None:
    plan = plan_residency([10] * 8, ends_bytes=5, budget_bytes=50)
    assert plan.resident == (2, 6)
    assert plan.streamed == (0, 1, 3, 4, 5, 7)
    assert (plan.slots, plan.size_bytes) == (2, 45)


def test_the_last_layer_needs_one_buffer_only() -> None:
    plan = plan_residency([10] * 3, ends_bytes=0, budget_bytes=30)
    assert plan.streamed == ()
    assert plan_residency([10] * 3, ends_bytes=0, budget_bytes=29).resident == ()


def test_the_least_budget_is_one_layer_and_is_named() -> None:
    plan = plan_residency([10, 30, 10], ends_bytes=5, budget_bytes=35)
    assert (plan.resident, plan.slots, plan.size_bytes) == ((), 1, 35)
    with pytest.raises(BudgetError, match="at least 35 B"):
        plan_residency([10, 30, 10], ends_bytes=5, budget_bytes=34)


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=12),
    st.integers(0, 50),
    st.integers(0, 900),
    st.integers(1, 4),
)
def test_a_plan_keeps_to_its_budget(layers: list[int], ends: int, budget: int, slots: int) -> None:
    try:
        plan = plan_residency(layers, ends_bytes=ends, budget_bytes=budget, slots=slots)
    except BudgetError:
        assert budget < ends + max(layers)
        return
    assert plan.size_bytes <= budget
    assert sorted((*plan.resident, *plan.streamed)) == list(range(len(layers)))
    assert plan.slots <= slots
    assert bool(plan.slots) == bool(plan.streamed)
