"""ModelExperts: the experts of all layers of a model, resident or by way of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.weights.assembly import ResidentExperts
from sllm.runtime.weights.disk_experts import DiskFetcher
from sllm.runtime.weights.eviction import ExpertKey, FrequencyEviction
from sllm.runtime.weights.expert_cache import CachedExperts, ExpertCache
from sllm.runtime.weights.grouped import ResidentGroup
from sllm.runtime.weights.slots import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sllm.runtime.weights.grouped import Seats, SlotProducts
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.runtime.weights.slots import Counts
    from sllm.runtime.weights.source import Expert, ExpertSource


class ModelExperts:
    """Where each layer's experts come from. Close it to end its reads."""

    def __init__(
        self,
        layers: Mapping[int, ExpertSource],
        counts: Counts | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = counts
        self.close = close
        self._layers = layers

    def layer(self, index: int) -> ExpertSource | None:
        """Return a layer's experts, if it has any."""
        return self._layers.get(index)


def open_host_experts(model: ModelGroups, slots: int) -> ModelExperts:
    """Return a model's experts in so many slots of host memory, read from disk.

    If there is a slot for each, they are read now.
    """
    layers = expert_numbers(model)
    if not layers:
        return ModelExperts({})
    fetcher = DiskFetcher(model, slots)
    table = SlotTable(slots, eviction_for(model, slots))

    def view(key: ExpertKey, slot: int) -> Expert:
        return model.assemble_expert(key, fetcher.slot(slot))

    cache = ExpertCache(table, fetcher, view)
    products = dict.fromkeys(layers)
    if slots < len(model.experts):
        return cached_experts(cache, products, fetcher.close)
    try:
        return ModelExperts(read_all(cache, layers, products), close=fetcher.close)
    except BaseException:
        fetcher.close()
        raise


def eviction_for(model: ModelGroups, slots: int) -> FrequencyEviction:
    """Return the policy for a cache of so many slots.

    A use counts half after as many visits as it takes to fill a layer's share of the slots anew.
    """
    chosen = max(model.needs().experts_chosen, 1)
    return FrequencyEviction(max(slots / (len(expert_numbers(model)) * chosen), 1.0))


def cached_experts(
    cache: ExpertCache[Expert],
    products: Mapping[int, SlotProducts | None],
    close: Callable[[], None] = lambda: None,
    seats: Mapping[int, Seats] | None = None,
) -> ModelExperts:
    """Return the experts of layers by way of a cache; products: their kernels, if there are any.

    seats: each layer's slots, where a device keeps the books.
    """
    seats = seats or {}
    return ModelExperts(
        {
            layer: CachedExperts(cache, layer, kernels, seats.get(layer))
            for layer, kernels in products.items()
        },
        cache.counts,
        close,
    )


def read_all(
    cache: ExpertCache[Expert],
    layers: Mapping[int, list[int]],
    products: Mapping[int, SlotProducts | None],
) -> dict[int, ExpertSource]:
    """Return all experts, read into a cache that has a slot for each."""
    resident: dict[int, ExpertSource] = {}
    for layer, numbers in layers.items():
        found: dict[int, Expert] = {}
        places: dict[int, int] = {}
        for start in range(0, len(numbers), cache.capacity):
            with cache.lease(layer, numbers[start : start + cache.capacity]) as experts:
                found |= experts
                places |= experts.coming
        kernels = products[layer]
        grouped = None if kernels is None else ResidentGroup(kernels, places)
        resident[layer] = ResidentExperts(found, grouped)
    return resident


def expert_numbers(model: ModelGroups) -> dict[int, list[int]]:
    """Return the experts' numbers by their layer."""
    layers: dict[int, list[int]] = {}
    for key in model.experts:
        layers.setdefault(key.layer, []).append(key.number)
    return layers
