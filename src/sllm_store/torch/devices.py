"""Devices as PyTorch names them, and as the store does: 'cpu' or a GPU's UUID."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sllm_store import native
from sllm_store.errors import DeviceError, InvalidRequestError

Device = int | str | torch.device
DeviceMap = Device | Mapping[str, Device]


def parse_device(device: object) -> torch.device:
    """Return a device with its index: 'cpu', or 'cuda' and which one.

    Raises InvalidRequestError for a device that a checkpoint cannot be loaded to, and DeviceError
    for a GPU that is not here.
    """
    if not isinstance(device, int | str | torch.device) or isinstance(device, bool):
        raise InvalidRequestError(
            f"device {device!r}: use 'cpu', 'cuda', 'cuda:1', a GPU's number or a torch.device"
        )
    if isinstance(device, int) and device < 0:
        raise InvalidRequestError(f"device {device}: a GPU's number is not negative; use 'cpu'")
    try:
        parsed = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as error:
        raise InvalidRequestError(
            f"device {device!r}: use 'cpu', 'cuda', 'cuda:1' or a GPU's number ({error})"
        ) from error
    if parsed.type == "cpu":
        return torch.device("cpu")
    if parsed.type != "cuda":
        raise InvalidRequestError(f"device {device!r}: checkpoints load to 'cpu' and CUDA devices")
    count = gpu_count()
    if count == 0:
        reason = native.cuda_unavailable_reason() or "the driver reports no device"
        raise DeviceError(f"device {device!r}: there is no usable GPU here ({reason}); use 'cpu'")
    named: int | None = parsed.index
    index = torch.cuda.current_device() if named is None else named
    if index >= count:
        raise DeviceError(f"device {device!r}: this process sees GPUs 0 to {count - 1}")
    return torch.device("cuda", index)


def parse_device_map(device_map: DeviceMap) -> dict[str, torch.device]:
    """Return name prefixes with their devices; one device alone takes everything."""
    if isinstance(device_map, Mapping):
        if not device_map:
            raise InvalidRequestError("the device map is empty: use {'': 'cpu'} or {'': 0}")
        return {str(prefix): parse_device(device) for prefix, device in device_map.items()}
    return {"": parse_device(device_map)}


def store_device(device: torch.device) -> str:
    """Return the store's name of a device."""
    return "cpu" if device.type == "cpu" else native.device_uuid(device.index)


def torch_device(name: str) -> torch.device:
    """Return the device that the store calls `name`."""
    if name == "cpu":
        return torch.device("cpu")
    for index in range(gpu_count()):
        if native.device_uuid(index) == name:
            return torch.device("cuda", index)
    raise DeviceError(f"no GPU {name} is visible here")


def gpu_count() -> int:
    """Return how many GPUs this process can use."""
    return native.device_count() if native.cuda_available() else 0
