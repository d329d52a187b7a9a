"""RMSNorm, computed in float32 whatever the model's dtype, and where a model has its norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.operands import HeadNorms, Norm

if TYPE_CHECKING:
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.weights.source import Weights


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


def find_norm(weights: Weights, name: str, config: ModelConfig) -> Norm:
    """Return the norm of a name, without `.weight`."""
    return Norm(
        weight=weights.vectors[f"{name}.weight"],
        epsilon=config.norm_epsilon,
        offset=config.norm_offset,
    )


def find_head_norms(weights: Weights, config: ModelConfig) -> HeadNorms:
    """Return the norms of a layer's queries and keys."""
    return HeadNorms(
        query=find_norm(weights, "self_attn.q_norm", config),
        key=find_norm(weights, "self_attn.k_norm", config),
    )
