"""Operations: what layers compute between products, as the device that they are on does it best.

They are chosen once, for a decoder. PyTorch's are what the others are held against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.batch import Span
    from sllm.runtime.layers.paged_steps import PagedSteps


class Operations(Protocol):
    """What layers compute between products."""

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Return the spans of one token, to attend all at once; None to attend span by span."""


class PlainOperations:
    """PyTorch's operations, on any device."""

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Have every span attend by itself."""
        return None


def operations_on(device: torch.device) -> Operations:
    """Return what a device computes with."""
    if device.type != "cuda":
        return PlainOperations()
    from sllm.runtime.layers.kernel_operations import KernelOperations

    return KernelOperations()
