"""Where each part of a model stays: a plan from bytes alone. Pure.

Layers are used in a cycle, where keeping the last used ones keeps none: a fixed set of residents
is the best there is. It is spread evenly, so that bytes move while residents compute; what comes
from disk is spread among what comes from host memory for the same reason. A byte outside the
experts is used in every pass, so experts get what is left: slots of a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sllm.core.errors import BudgetError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 3
HOST_SLOTS = 2  # One in use and one that is read into: a third costs a resident layer or two.


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model takes. Layers are without their experts; experts are those of all layers.

    expert_bytes: a slot for any of them; experts_chosen: the most that a layer uses for a token.
    other_bytes: what else has to be on the device, as caches and what is in between.
    """

    layer_bytes: tuple[int, ...]
    ends_bytes: int
    experts: int = 0
    expert_bytes: int = 0
    experts_chosen: int = 0
    other_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What may be taken; None is no limit. Without a `host` the device is the host's memory."""

    device_bytes: int | None = None
    host_bytes: int | None = None
    has_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Layers by where they stay, buffers that the others go through, and slots for experts.

    slots: buffers on the device for layers that stream; staging: buffers on the host for layers
    and experts that come from disk to a device. device_bytes and host_bytes are what it all takes.
    """

    resident: tuple[int, ...]
    pinned: tuple[int, ...]
    disk: tuple[int, ...]
    slots: int
    staging: int
    expert_slots: int
    host_expert_slots: int
    device_bytes: int
    host_bytes: int

    @property
    def streamed(self) -> tuple[int, ...]:
        """Return the layers that are not resident, in order."""
        return tuple(sorted((*self.pinned, *self.disk)))


class _Device(NamedTuple):
    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    slots: int
    expert_slots: int
    size_bytes: int


class _Host(NamedTuple):
    pinned: tuple[int, ...]
    disk: tuple[int, ...]
    staging: int
    expert_slots: int
    size_bytes: int


def plan_residency(needs: Needs, budgets: Budgets, *, slots: int = SLOTS) -> Residency:
    """Return the plan that keeps most where it is fastest.

    What is around the layers always stays. Streamed layers go through up to `slots` buffers of the
    largest of them; fewer, if that is what fits. Raises BudgetError, naming the least that
    suffices, of the device or of the host.
    """
    device = _plan_device(needs, budgets.device_bytes, slots)
    host = _Host((), device.streamed, 0, 0, 0)
    if budgets.has_host:
        experts = needs.experts if device.expert_slots < needs.experts else 0
        host = _plan_host(needs, budgets.host_bytes, device.streamed, slots=slots, experts=experts)
    return Residency(
        resident=device.resident,
        pinned=host.pinned,
        disk=host.disk,
        slots=device.slots,
        staging=host.staging,
        expert_slots=device.expert_slots,
        host_expert_slots=host.expert_slots,
        device_bytes=device.size_bytes,
        host_bytes=host.size_bytes,
    )


def _plan_device(needs: Needs, budget_bytes: int | None, slots: int) -> _Device:
    least = _choices(needs)
    for expert_slots in least:
        for buffers in range(slots, 0, -1):
            for count in range(len(needs.layer_bytes), -1, -1):
                plan = _on_device(needs, count, slots=buffers, expert_slots=expert_slots)
                if budget_bytes is None or plan.size_bytes <= budget_bytes:
                    more = _more_experts(needs, plan.expert_slots, plan.size_bytes, budget_bytes)
                    return plan._replace(
                        expert_slots=plan.expert_slots + more,
                        size_bytes=plan.size_bytes + more * needs.expert_bytes,
                    )
    bytes_least = _on_device(needs, 0, slots=1, expert_slots=least[-1]).size_bytes
    raise BudgetError(
        f"the model needs at least {format_size(bytes_least)} on its device (what is around the "
        "layers, room for one layer and one expert, and its caches), and "
        f"{format_size(budget_bytes or 0)} are allowed: allow more, or ask for a shorter context"
    )


def _on_device(needs: Needs, count: int, *, slots: int, expert_slots: int) -> _Device:
    resident = _spread(count, len(needs.layer_bytes))
    streamed = _others(range(len(needs.layer_bytes)), resident)
    slots = min(slots, len(streamed))
    kept = _sum(needs, resident) + slots * _largest(needs, streamed)
    experts = expert_slots * needs.expert_bytes
    size_bytes = needs.ends_bytes + needs.other_bytes + kept + experts
    return _Device(resident, streamed, slots, expert_slots, size_bytes)


def _plan_host(
    needs: Needs, budget_bytes: int | None, streamed: Sequence[int], *, slots: int, experts: int
) -> _Host:
    """Place what is not on the device; `experts` of them are outside it at any time."""
    least = _choices(needs) if experts else (0,)
    for expert_slots in least:
        for buffers in range(slots, 0, -1):
            for count in range(len(streamed), -1, -1):
                plan = _on_host(needs, streamed, count, slots=buffers, expert_slots=expert_slots)
                if budget_bytes is None or plan.size_bytes <= budget_bytes:
                    more = 0
                    if experts:
                        more = _more_experts(needs, expert_slots, plan.size_bytes, budget_bytes)
                    return plan._replace(
                        expert_slots=expert_slots + more,
                        size_bytes=plan.size_bytes + more * needs.expert_bytes,
                    )
    bytes_least = _on_host(needs, streamed, 0, slots=1, expert_slots=least[-1]).size_bytes
    raise BudgetError(
        f"the model needs at least {format_size(bytes_least)} of host memory (a buffer between "
        f"disk and device), and {format_size(budget_bytes or 0)} are allowed: allow more on either"
    )


def _on_host(
    needs: Needs, streamed: Sequence[int], count: int, *, slots: int, expert_slots: int
) -> _Host:
    pinned = tuple(streamed[index] for index in _spread(count, len(streamed)))
    disk = _others(streamed, pinned)
    staging = min(slots, len(disk))
    size_bytes = _sum(needs, pinned) + staging * _largest(needs, disk)
    return _Host(
        pinned, disk, staging, expert_slots, size_bytes + expert_slots * needs.expert_bytes
    )


def _choices(needs: Needs) -> tuple[int, ...]:
    """Return how many slots for experts there should be at least: a token's, or one."""
    if not needs.experts:
        return (0,)
    return tuple(dict.fromkeys((min(max(needs.experts_chosen, 1), needs.experts), 1)))


def _more_experts(needs: Needs, slots: int, size_bytes: int, budget_bytes: int | None) -> int:
    """Return for how many more experts than `slots` a budget has room."""
    left = needs.experts - slots
    if budget_bytes is None or not left:
        return left
    return min(left, (budget_bytes - size_bytes) // max(needs.expert_bytes, 1))


def _sum(needs: Needs, layers: Sequence[int]) -> int:
    return sum(needs.layer_bytes[index] for index in layers)


def _largest(needs: Needs, layers: Sequence[int]) -> int:
    return max((needs.layer_bytes[index] for index in layers), default=0)


def _others(layers: Sequence[int], chosen: Sequence[int]) -> tuple[int, ...]:
    taken = set(chosen)
    return tuple(index for index in layers if index not in taken)


def _spread(count: int, total: int) -> tuple[int, ...]:
    """Return `count` of the numbers below `total`, evenly."""
    return tuple((2 * index + 1) * total // (2 * count) for index in range(count))
