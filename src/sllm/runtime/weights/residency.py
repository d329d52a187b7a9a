"""Which layers stay in memory: a plan from bytes alone. Pure.

Layers are used in a cycle, where keeping the last used ones keeps none: a fixed set of residents
is the best there is. It is spread evenly, so that reading goes on while residents compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import BudgetError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Layers that stay and layers that stream, in order; `size_bytes` is what all of it takes."""

    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    slots: int
    size_bytes: int


def plan_residency(
    layer_bytes: Sequence[int], *, ends_bytes: int, budget_bytes: int | None, slots: int = SLOTS
) -> Residency:
    """Return the most layers that may stay within a budget; None means that there is no limit.

    What is around the layers always stays, and streamed layers need `slots` buffers of the largest
    of them. Raises BudgetError, naming the least, if the budget is below that.
    """
    total = len(layer_bytes)
    for count in range(total, -1, -1):
        plan = _plan(layer_bytes, _spread(count, total), ends_bytes=ends_bytes, slots=slots)
        if budget_bytes is None or plan.size_bytes <= budget_bytes:
            return plan
    least = _plan(layer_bytes, (), ends_bytes=ends_bytes, slots=1).size_bytes
    if budget_bytes is not None and least <= budget_bytes and slots > 1:
        return plan_residency(
            layer_bytes, ends_bytes=ends_bytes, budget_bytes=budget_bytes, slots=slots - 1
        )
    raise BudgetError(
        f"the weights need at least {format_size(least)} of memory (one layer and what is around "
        f"the layers), and {format_size(budget_bytes or 0)} are allowed"
    )


def _spread(count: int, total: int) -> tuple[int, ...]:
    """Return `count` of the numbers below `total`, evenly."""
    return tuple((2 * index + 1) * total // (2 * count) for index in range(count))


def _plan(
    layer_bytes: Sequence[int], resident: tuple[int, ...], *, ends_bytes: int, slots: int
) -> Residency:
    streamed = tuple(index for index in range(len(layer_bytes)) if index not in set(resident))
    slots = min(slots, len(streamed))
    largest = max((layer_bytes[index] for index in streamed), default=0)
    kept = sum(layer_bytes[index] for index in resident)
    return Residency(
        resident=resident,
        streamed=streamed,
        slots=slots,
        size_bytes=ends_bytes + kept + slots * largest,
    )
