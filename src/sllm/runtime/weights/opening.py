"""open_weights: a model's weights on any device, each part in the fastest memory that has room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.weights.device_placement import place_on_device
from sllm.runtime.weights.expert_images import ExpertImages
from sllm.runtime.weights.free_memory import free_on_device, free_on_host
from sllm.runtime.weights.images import GroupImage
from sllm.runtime.weights.lane import CudaLane
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.placement import place_on_host
from sllm.runtime.weights.residency import HOST_SLOTS, Budgets, plan_residency
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.runtime.weights.lane import Lane
    from sllm.runtime.weights.residency import Needs, Residency
    from sllm_store.groups.head_start import Arrived, HeadStart


def open_weights(
    path: Path,
    *,
    device: str | torch.device = "cpu",
    device_budget_bytes: int | None = None,
    host_budget_bytes: int | None = None,
    other_bytes: int = 0,
) -> StoredWeights:
    """Open a checkpoint of any format, and read what stays: see place_weights.

    Raises UnsupportedModelError for what cannot be computed, before anything large is read.
    """
    return place_weights(
        ModelGroups.open(path),
        device=device,
        device_budget_bytes=device_budget_bytes,
        host_budget_bytes=host_budget_bytes,
        other_bytes=other_bytes,
    )


def place_weights(
    model: ModelGroups,
    *,
    device: str | torch.device = "cpu",
    device_budget_bytes: int | None = None,
    host_budget_bytes: int | None = None,
    other_bytes: int = 0,
    head_start: HeadStart | None = None,
) -> StoredWeights:
    """Return the weights of a model that was opened, with what stays read.

    device_budget_bytes: what may be taken on the device, of which `other_bytes` are for caches and
    what is in between. host_budget_bytes: what may be taken of the host's memory; on the CPU that
    is the device, and the smaller of the two counts. Without a budget, a GPU's is what is free now,
    and the CPU's is none. Raises BudgetError for too little, before anything large is read.
    head_start: of the same checkpoint; a GPU's layers are taken from it, if they all stay there,
    and it ends if they do not.
    """
    target = torch.device(device)
    if head_start is not None and (
        target.type != "cuda" or head_start.device != (target.index or 0)
    ):
        head_start.close()  # Nobody takes what it moves.
        head_start = None
    if target.type == "cpu":
        given = [size for size in (device_budget_bytes, host_budget_bytes) if size is not None]
        budgets = Budgets(device_bytes=min(given, default=None))
        other_bytes += model.reader.made_bytes
        plan = plan_residency(model.needs(other_bytes=other_bytes), budgets, slots=HOST_SLOTS)
        return StoredWeights(model, plan, place_on_host(model, plan))
    if target.type != "cuda":
        raise InvalidRequestError(f"weights cannot be on {device}: use cpu, or cuda and a number")
    if device_budget_bytes is None:
        device_budget_bytes = free_on_device(target)
    if host_budget_bytes is None:
        host_budget_bytes = free_on_host()
    host_bytes = max(host_budget_bytes - model.reader.made_bytes, 0)
    budgets = Budgets(device_bytes=device_budget_bytes, host_bytes=host_bytes, has_host=True)
    plan = plan_residency(device_needs(model, other_bytes=other_bytes), budgets)
    arrived = None
    if head_start is not None:
        if plan.streamed:
            head_start.close()  # It would read the same disk, into memory that nobody takes.
        arrived = head_start.arrived()
    return open_on_device(model, plan, CudaLane(target), arrived)


def device_needs(model: ModelGroups, *, other_bytes: int = 0) -> Needs:
    """Return what a model takes on a device and beside it: a layer as it is stored, or laid out.

    A layer that comes from disk is laid out in memory of its own, and so are experts, which counts
    as other bytes.
    """
    images = _images(model)
    if not all(image.is_stored for image in images):
        other_bytes += max(image.size_bytes for image in images[1:])
    experts = ExpertImages(model)
    return model.needs(
        other_bytes=other_bytes + experts.scratch_bytes,
        sizes=lambda group: max(images[group].size_bytes, images[group].stored_bytes),
        expert_bytes=experts.slot_bytes,
    )


def open_on_device(
    model: ModelGroups, plan: Residency, lane: Lane[Any], arrived: Arrived | None = None
) -> StoredWeights:
    """Return a model's weights on a device, by a plan; the lane is closed with them.

    arrived: the model's files, if they are on the device.
    """
    placement = place_on_device(model, _images(model), plan, lane, arrived=arrived)
    return StoredWeights(model, plan, placement)


def _images(model: ModelGroups) -> list[GroupImage]:
    """Return the layouts of what is around the layers, and of each layer."""
    return [GroupImage(layout) for layout in model.reader.layouts[: len(model.config.layers) + 1]]
