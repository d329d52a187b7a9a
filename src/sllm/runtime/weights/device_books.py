"""DeviceBooks: a cache of experts whose books the device keeps, over host memory that has them all.

What a router chose is on the device, and so is what is in the slots. So the device finds out what
is missing and copies it from pinned memory itself, and a layer takes max(copies, products of what
is there) plus the products of what came; the host is asked for nothing and told nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.weights.eviction import ExpertKey
from sllm.runtime.weights.slots import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sllm.runtime.kernels.expert_books import HostExperts, LayerBooks
    from sllm.runtime.weights.lane import Lane
    from sllm.runtime.weights.slots import Counts


class DeviceBooks:
    """Slots for experts, each layer's by themselves. It does for an ExpertCache as a SlotTable."""

    def __init__(
        self,
        lane: Lane[Any],
        places: Mapping[int, Sequence[int]],
        memories: tuple[torch.Tensor, torch.Tensor],
        *,
        chosen: int,
    ) -> None:
        """places: where the host has each expert of a layer, by its number. chosen: for a token.

        memories: all experts in pinned memory, and the slots on the device: (experts, bytes).
        """
        from sllm.runtime.kernels.expert_books import HostExperts, LayerBooks, Tally

        experts = HostExperts.of(*memories)
        device = experts.target.device
        tally = Tally(device)
        rooms = share_slots(len(experts.target), len(places))
        self._layers = {
            layer: LayerBooks(
                experts=len(own),
                slots=slots,
                half_life=max(len(slots) / chosen, 1.0),
                tally=tally,
            )
            for (layer, own), slots in zip(places.items(), rooms, strict=True)
        }
        self.slots = min(map(len, rooms))
        self.counts: Counts = _ToldCounts(tally.told)
        self.seats = {
            layer: DeviceSeats(
                lane, books, experts, torch.tensor(places[layer], dtype=torch.int32, device=device)
            )
            for layer, books in self._layers.items()
        }

    def claim(self, layer: int, numbers: Sequence[int]) -> Claim:
        """Give experts of a layer slots, and wait to know which: see SlotTable."""
        books = self._layers[layer]
        found = books.claim(torch.tensor(numbers, device=books.missing.device)).tolist()
        keys = [ExpertKey(layer, number) for number in numbers]
        there, coming = (
            {key: slot for key, slot in zip(keys, slots, strict=True) if slot >= 0}
            for slots in found
        )
        return Claim(there, coming)

    def release(self, layer: int, numbers: Sequence[int]) -> None:
        """End a claim: the next one of the layer may have its slots."""

    def discard(self, keys: Sequence[ExpertKey]) -> None:
        """Forget what is in the slots of layers of which experts could not be fetched."""
        for layer in {key.layer for key in keys}:
            self._layers[layer].forget()


class DeviceSeats:
    """A layer's slots. origins: where the host has each expert."""

    def __init__(
        self, lane: Lane[Any], books: LayerBooks, experts: HostExperts, origins: torch.Tensor
    ) -> None:
        self.room = len(books.slots)
        self._lane = lane
        self._books = books
        self._experts = experts
        self._origins = origins

    def take(self, chosen: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the slots of what is there, then of what was fetched; -1 for all else."""
        from sllm.runtime.kernels.chains import break_chain

        there, coming = self._books.claim(chosen)
        break_chain()
        fetched = self._lane.launch(
            lambda: self._experts.fetch(self._books.missing, self._origins),
            after=self._lane.mark(),
        )
        yield there
        self._lane.wait(fetched)
        break_chain()
        yield coming


class _ToldCounts:
    """Counts that a device writes whenever it gets there: see CacheCounts."""

    def __init__(self, told: torch.Tensor) -> None:
        self._told = told
        self._before = (0, 0)

    @property
    def hits(self) -> int:
        return int(self._told[0]) - self._before[0]

    @property
    def misses(self) -> int:
        return int(self._told[1]) - self._before[1]

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    def reset(self) -> None:
        hits, misses = self._told.tolist()
        self._before = (hits, misses)


def share_slots(slots: int, layers: int) -> list[range]:
    """Return each layer's slots, as even as may be."""
    bounds = [slots * index // layers for index in range(layers + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
