"""What a model may take unless it is told: most of what is free, on a GPU and on the host."""

from __future__ import annotations

import torch

from sllm_store.host_memory import available_bytes

# What is free is not ours alone: others allocate, and memory is lost between allocations.
_DEVICE_SHARE = 0.94
_HOST_SHARE = 0.8


def free_on_device(device: torch.device) -> int:
    """Return how many bytes of a GPU a model may take."""
    return int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)


def free_on_host() -> int:
    """Return how many bytes of the host's memory a model may take."""
    return int(available_bytes() * _HOST_SHARE)
