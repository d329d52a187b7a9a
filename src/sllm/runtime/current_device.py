"""The GPU that a thread's launches go to: the first, unless the thread says otherwise."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Have what this thread launches meanwhile go to a device. PyTorch's operations do anyway."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
