"""RMSNorm, computed in float32 whatever the model's dtype."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, epsilon: float, offset: float
) -> torch.Tensor:
    """Return x / rms(x) * (weight + offset), over the last dimension.

    With an offset (Qwen3-Next's zero-centred weights) the product is rounded once, in float32;
    without, the normalised x is rounded first. Both are as these models were trained.
    """
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    if offset:
        return (normalised * (weight.float() + offset)).to(x.dtype)
    return (weight * normalised.to(x.dtype)).to(x.dtype)
