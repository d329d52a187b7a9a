"""Which module goes to which device: what the caller asked for, or what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory

from sllm_store import native
from sllm_store.errors import InvalidRequestError
from sllm_store.torch.devices import DeviceMap, gpu_count, parse_device_map
from sllm_store.transformers.internals import no_split_classes, skip_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
# Of a GPU's free memory, what weights may take when a whole model is put on it without asking.
_FILL_MAX = 0.9

Placement = dict[str, torch.device]


def place_without_model(device_map: DeviceMap, size_bytes: int) -> Placement | None:
    """Return the placement if it can be known before the model is built, else None."""
    if not isinstance(device_map, str) or device_map not in AUTOMATIC:
        return parse_device_map(device_map)
    count = gpu_count()
    if count == 0:
        return {"": torch.device("cpu")}
    if count == 1 and size_bytes <= native.device_memory(0)[0] * _FILL_MAX:
        return {"": torch.device("cuda", 0)}
    return None


def place(
    model: PreTrainedModel,
    device_map: str,
    *,
    max_memory: Mapping[int | str, int] | None = None,
) -> Placement:
    """Spread a model that is still on meta over the devices, as its authors allow it to be split.

    max_memory maps GPU numbers and 'cpu' to bytes; by default it is what is free.
    """
    whole = no_split_classes(model)
    limits = dict(max_memory) if max_memory is not None else None
    if device_map == "sequential":
        memory = get_max_memory(limits)
    else:
        memory = get_balanced_memory(
            model,
            max_memory=limits,
            no_split_module_classes=whole,
            dtype=model.dtype,
            low_zero=device_map == "balanced_low_0",
        )
    placed = infer_auto_device_map(
        model, max_memory=memory, no_split_module_classes=whole, dtype=model.dtype
    )
    if "disk" in placed.values():
        raise InvalidRequestError(
            f"the model does not fit in the memory of the devices ({memory}): free some, or choose "
            "a smaller dtype"
        )
    return {
        name: torch.device("cpu") if device == "cpu" else torch.device("cuda", device)
        for name, device in placed.items()
    }


def require_covered(model: PreTrainedModel, placement: Placement) -> None:
    """Raise InvalidRequestError if some tensor of the model has no device."""
    names = [*model.state_dict(), *(name for name, _ in model.named_buffers())]
    bare = [] if "" in placement else [name for name in names if not _covers(placement, name)]
    if bare:
        raise InvalidRequestError(
            f"the device map leaves out {len(bare)} tensors, such as {bare[0]!r}: add their "
            "modules, or '' for all the rest"
        )


def device_of(placement: Placement, name: str) -> torch.device:
    """Return the device of a tensor or a module: the longest prefix that ends at a dot wins."""
    prefix = name
    while prefix not in placement and prefix:
        prefix = prefix.rpartition(".")[0]
    return placement[prefix]


def dispatch(model: Any, placement: Placement) -> None:
    """Make a model that is spread over devices run, and note where its modules are."""
    if len(set(placement.values())) == 1:
        # Not the string: to save_pretrained, 'cpu' means that accelerate has offloaded something.
        model.hf_device_map = {
            name: device.index if device.type == "cuda" else device
            for name, device in placement.items()
        }
        return
    device_map = {
        name: device.index if device.type == "cuda" else "cpu" for name, device in placement.items()
    }
    dispatch_model(model, device_map=device_map, skip_keys=skip_keys(model))


def _covers(placement: Placement, name: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in placement)
