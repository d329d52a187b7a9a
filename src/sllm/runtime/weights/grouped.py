"""Groups of experts: all pairs of tokens and experts of a small batch, in a few launches.

Who has all experts of a layer knows their slots on the device, and nothing waits for the host. Nor
does it where the device keeps the books of a cache. Who has a cache otherwise asks for those that
are chosen. What is there is computed while the others are fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sllm.runtime.weights.expert_images import ExpertPlanes


_NOBODY = -2  # The slot of what is no expert.


def has_kernels(device: torch.device) -> bool:
    """Return whether kernels run on a device."""
    return device.type == "cuda"


class SlotProducts:
    """The products of a layer's experts in slots that are alike, by kernels.

    planes: those of the first slot; slot_bytes: how far the next one is.
    """

    def __init__(self, planes: ExpertPlanes, slot_bytes: int) -> None:
        from sllm.runtime.kernels import expert_products

        self.device = planes.gate.low.device
        self._kernels = expert_products
        self._gate = expert_products.SlotPlanes(planes.gate, slot_bytes)
        self._up = expert_products.SlotPlanes(planes.up, slot_bytes)
        self._down = expert_products.SlotPlanes(planes.down, slot_bytes)
        self._width = planes.gate.shape[0]

    def compute(
        self, x: torch.Tensor, shares: torch.Tensor, turns: Iterator[torch.Tensor]
    ) -> torch.Tensor:
        """Return each token's sum of its experts by their shares, (tokens, chosen).

        turns: the slot of each pair, (tokens, chosen), or -1 in all turns but one. It is -2 in all
        of them if nothing was chosen.
        """
        tokens, chosen = shares.shape
        inner = torch.empty((tokens, chosen, self._width), dtype=x.dtype, device=x.device)
        found = torch.empty((tokens, chosen, x.shape[1]), dtype=torch.float32, device=x.device)
        for slots in turns:
            self._kernels.multiply_gate_up(x, slots, self._gate, self._up, out=inner)
            self._kernels.multiply_down(inner, slots, self._down, out=found)
        return self._kernels.add_pairs(found, shares, x.dtype)


class ResidentGroup:
    """All experts of a layer. places: the slot of each by its number."""

    most_pairs = None

    def __init__(self, products: SlotProducts, places: Mapping[int, int]) -> None:
        self._products = products
        slots = [*(places[number] for number in range(len(places))), _NOBODY]
        self._places = torch.tensor(slots, dtype=torch.int32, device=products.device)

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return what the chosen experts add; see SlotProducts."""
        return self._products.compute(x, shares, iter((self._places[chosen],)))


class Leased(Protocol):
    """Slots of experts by number: of those that are there, and of those that are fetched."""

    there: Mapping[int, int]
    coming: Mapping[int, int]

    def wait(self, number: int) -> None:
        """Let what computes wait for an expert that is coming."""


class Leasing(Protocol):
    """Gives experts of a layer for as long as a context is open."""

    capacity: int

    def lease(self, numbers: Sequence[int]) -> AbstractContextManager[Any]:
        """Return a Leased."""


class CachedGroup:
    """Experts of a layer by way of a cache."""

    most_pairs = 0

    def __init__(self, products: SlotProducts, source: Leasing) -> None:
        self._products = products
        self._source = source

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return what the chosen experts add; see SlotProducts."""
        return self._products.compute(x, shares, self._turns(chosen))

    def _turns(self, chosen: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the slots of what is there, then of what was fetched, as many as there is room for.

        What is computed with them has to be asked for before the next are taken.
        """
        numbers = chosen.tolist()
        wanted = sorted({number for token in numbers for number in token})
        for start in range(0, len(wanted), self._source.capacity):
            with self._source.lease(wanted[start : start + self._source.capacity]) as leased:
                if leased.there:
                    yield _slots(numbers, leased.there, chosen.device)
                for number in leased.coming:
                    leased.wait(number)
                if leased.coming:
                    yield _slots(numbers, leased.coming, chosen.device)


class Seats(Protocol):
    """Slots of a layer's experts, on a device that keeps the books of them."""

    room: int

    def take(self, chosen: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the slots of what is there, then of what was fetched; -1 for all else."""


class SeatedGroup:
    """Experts of a layer by way of a cache, while nothing waits for the host.

    by_host: for as many pairs as there may be no slots for.
    """

    def __init__(self, products: SlotProducts, seats: Seats, by_host: CachedGroup) -> None:
        self.most_pairs = seats.room
        self._products = products
        self._seats = seats
        self._by_host = by_host

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return what the chosen experts add; see SlotProducts."""
        if chosen.numel() > self.most_pairs:
            return self._by_host(x, chosen, shares)
        return self._products.compute(x, shares, self._seats.take(chosen))


def _slots(
    numbers: Sequence[Sequence[int]], places: Mapping[int, int], device: torch.device
) -> torch.Tensor:
    """Return the slot of each number, and -1 for those that have none."""
    found = [[places.get(number, -1) for number in token] for token in numbers]
    slots = torch.tensor(found, dtype=torch.int32, pin_memory=device.type == "cuda")
    return slots.to(device, non_blocking=True)
