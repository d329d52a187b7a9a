"""The bytes of a model where a plan has them: on a device, in pinned host memory, and on disk."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch.utils.dlpack import from_dlpack

from sllm.runtime.weights.device_books import DeviceBooks
from sllm.runtime.weights.device_experts import DeviceFetcher
from sllm.runtime.weights.device_layers import DeviceLayers
from sllm.runtime.weights.disk_experts import DiskFetcher
from sllm.runtime.weights.eviction import ExpertKey
from sllm.runtime.weights.expert_cache import ExpertCache
from sllm.runtime.weights.expert_images import ExpertImages
from sllm.runtime.weights.grouped import SlotProducts, has_kernels
from sllm.runtime.weights.model_experts import (
    ModelExperts,
    cached_experts,
    eviction_for,
    expert_numbers,
    read_all,
)
from sllm.runtime.weights.model_groups import ENDS
from sllm.runtime.weights.placement import Placement
from sllm.runtime.weights.slots import SlotTable
from sllm_store.groups.reads import ThreadedReads
from sllm_store.groups.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from sllm.runtime.weights.images import GroupImage
    from sllm.runtime.weights.lane import Lane
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.runtime.weights.residency import Residency
    from sllm.runtime.weights.source import Expert
    from sllm_store.groups.head_start import Arrived

FETCHED_BY_DEVICE = True  # Whether a device may keep the books of its cache of experts.
_POPULATING = 8  # Threads.
_LOADING = 2  # Buffers that resident groups go through: one is read into while one is copied.


def place_on_device(
    model: ModelGroups,
    images: Sequence[GroupImage],
    residency: Residency,
    lane: Lane[Any],
    *,
    arrived: Arrived | None = None,
) -> Placement:
    """Read and copy what stays, fill the host's tier, and begin to copy what is streamed.

    images: the layouts on the device of what is around the layers, and of each layer. The lane is
    closed with the placement, or if this raises. arrived: the files, if they are on the device.
    """
    with ExitStack() as closing:
        closing.callback(lane.close)
        fixed = (ENDS, *(index + 1 for index in residency.resident))
        groups = {
            group: images[group].view(image)
            for group, image in _lay_out_fixed(model, images, lane, fixed, arrived=arrived)
        }
        layers = None
        if residency.streamed:
            layers = closing.enter_context(_stream_layers(model, images, residency, lane))
        experts = _open_experts(model, residency, lane, closing)
        return Placement(
            groups=groups, layers=layers, experts=experts, close=closing.pop_all().close
        )


def _lay_out_fixed(
    model: ModelGroups,
    images: Sequence[GroupImage],
    lane: Lane[Any],
    groups: Sequence[int],
    *,
    arrived: Arrived | None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield groups as they are to be on the device, out of memory there or from the disk."""
    if arrived is None:
        yield from _lay_out(model, images, lane, groups)
        return
    files = from_dlpack(arrived.memory)
    for group in groups:
        raw = lane.allocate(images[group].stored_bytes)
        layout = model.reader.layouts[group]
        for tensor, place in zip(layout.tensors, layout.places, strict=True):
            if tensor.size_bytes:
                start = arrived.find(tensor)
                raw[place : place + tensor.size_bytes].copy_(
                    files[start : start + tensor.size_bytes], non_blocking=True
                )
        yield group, _as_image(images[group], raw, lane)


def _as_image(image: GroupImage, raw: torch.Tensor, lane: Lane[Any]) -> torch.Tensor:
    """Return stored bytes as they are to be on the device, where they are."""
    if image.is_stored:
        return raw
    laid_out = lane.allocate(image.size_bytes)
    image.write(laid_out, raw)
    return laid_out


def _lay_out(
    model: ModelGroups, images: Sequence[GroupImage], lane: Lane[Any], groups: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield groups as they are to be on the device, each in memory of its own there."""
    if not groups:
        return
    with _open_staging(model, lane, groups, slots=_LOADING) as ring:
        for group in groups:
            image = images[group]
            raw = lane.allocate(image.stored_bytes)
            with ring.lease(group) as buffer:
                source = from_dlpack(buffer)[: image.stored_bytes]
                lane.finish(lane.copy(raw, source, after=lane.mark()))
            yield group, _as_image(image, raw, lane)


@contextmanager
def _open_staging(
    model: ModelGroups, lane: Lane[Any], order: Sequence[int], *, slots: int
) -> Iterator[Ring[Any]]:
    """Return a ring that reads from disk into pinned memory."""
    size_bytes = max(map(model.reader.size_bytes, order))
    buffers = [model.reader.allocate(size_bytes) for _ in range(min(slots, len(order)))]
    for buffer in buffers:  # Pinning what is not there yet brings it page by page.
        buffer.populate(_POPULATING)
    memories = [from_dlpack(buffer) for buffer in buffers]
    for memory in memories:
        lane.pin(memory)
    try:
        with Ring(ThreadedReads(model.reader.read), order, buffers) as ring:
            yield ring
    finally:
        for memory in memories:
            lane.unpin(memory)


@contextmanager
def _stream_layers(
    model: ModelGroups, images: Sequence[GroupImage], residency: Residency, lane: Lane[Any]
) -> Iterator[DeviceLayers]:
    pinned = {}
    for group, image in _lay_out(model, images, lane, [index + 1 for index in residency.pinned]):
        pinned[group] = from_dlpack(model.reader.allocate(len(image)))
        pinned[group].copy_(image)
        lane.pin(pinned[group])
    with ExitStack() as closing:
        staging = None
        if residency.disk:
            disk = [index + 1 for index in residency.disk]
            opening = _open_staging(model, lane, disk, slots=residency.staging)
            staging = closing.enter_context(opening)
        layers = DeviceLayers(
            lane,
            {index + 1: images[index + 1] for index in residency.streamed},
            slots=residency.slots,
            pinned=pinned,
            staging=staging,
        )
        closing.callback(layers.close)
        yield layers


def _open_experts(
    model: ModelGroups, residency: Residency, lane: Lane[Any], closing: ExitStack
) -> ModelExperts:
    numbers = expert_numbers(model)
    if not numbers:
        return ModelExperts({})
    all_stay = residency.expert_slots >= len(model.experts)
    host_slots = residency.host_expert_slots or max(map(len, numbers.values()))
    images = ExpertImages(model)
    slots = lane.allocate(residency.expert_slots * images.slot_bytes)
    slots = slots.view(residency.expert_slots, images.slot_bytes)
    products = {layer: _products(images, layer, slots[0]) for layer in numbers}
    keeps_books = not all_stay and _keeps_books(model, residency, products)
    disk = DiskFetcher(model, host_slots, images.slot_bytes if keeps_books else model.slot_bytes)
    closing.callback(disk.close)
    host_table = SlotTable(host_slots, eviction_for(model, host_slots))
    host = ExpertCache(host_table, disk, lambda _, slot: disk.slot(slot)[: images.slot_bytes])
    if not all_stay:
        _fill_host(host, numbers, host_slots)
    lane.pin(disk.memory)
    fetcher = DeviceFetcher(lane, host, images, slots)
    closing.callback(fetcher.release)

    def view(key: ExpertKey, slot: int) -> Expert:
        return images.view(key, fetcher.slot(slot))

    if keeps_books:
        fetcher.lay_out_all(list(model.experts))
        places = {
            layer: [host_table.places[ExpertKey(layer, number)] for number in own]
            for layer, own in numbers.items()
        }
        memories = (disk.memory.view(host_slots, -1), slots)
        books = DeviceBooks(lane, places, memories, chosen=model.needs().experts_chosen)
        return cached_experts(ExpertCache(books, fetcher, view), products, seats=books.seats)
    table = SlotTable(residency.expert_slots, eviction_for(model, residency.expert_slots))
    cache = ExpertCache(table, fetcher, view, capacity=host.capacity)
    if not all_stay:
        return cached_experts(cache, products)
    resident = read_all(cache, numbers, products)
    fetcher.release()
    lane.unpin(disk.memory)
    disk.close()
    return ModelExperts(resident)


def _keeps_books(
    model: ModelGroups, residency: Residency, products: Mapping[int, SlotProducts | None]
) -> bool:
    """Return whether the device keeps the books of its cache.

    The host has room for every expert then, and each layer for those of a token.
    """
    return (
        FETCHED_BY_DEVICE
        and residency.host_expert_slots >= len(model.experts)
        and residency.expert_slots // len(products) >= model.needs().experts_chosen
        and None not in products.values()
    )


def _products(images: ExpertImages, layer: int, slot: torch.Tensor) -> SlotProducts | None:
    """Return the kernels for a layer's experts, by the first slot; None where there are none."""
    planes = images.common_planes(layer, slot) if has_kernels(slot.device) else None
    return None if planes is None else SlotProducts(planes, images.slot_bytes)


def _fill_host(
    host: ExpertCache[torch.Tensor], numbers: Mapping[int, list[int]], slots: int
) -> None:
    """Read as many experts of each layer as there is room for, so that later reads are fewer."""
    total = sum(map(len, numbers.values()))
    for layer, own in numbers.items():
        some = own[: len(own) * slots // total]
        with host.lease(layer, some) as experts:
            dict(experts)
    host.counts.reset()
