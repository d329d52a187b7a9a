"""Rotary positions: the frequencies of each scaling, and how a batch is rotated by them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sllm.runtime.config.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    YarnScaling,
)
from sllm.runtime.kernels.operands import Frequencies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.batch import Span
    from sllm.runtime.kernels.operands import Rotation
    from sllm.runtime.layers.operations import Operations


class Rope:
    """The rotary positions of one model."""

    def __init__(self, config: RopeConfig, device: torch.device, operations: Operations) -> None:
        self._config = config
        self._operations = operations
        self._frequencies = Frequencies(
            frequencies(config).to(device), attention_scale(config), config.interleaved
        )

    def rotate(
        self, positions: torch.Tensor, spans: Sequence[Span], dtype: torch.dtype
    ) -> Rotation:
        """Return the rotation of each token, computed in float32."""
        scaling = self._config.scaling
        if not isinstance(scaling, DynamicScaling):
            return self._operations.rotate(positions, self._frequencies, dtype)
        angles = self._frequencies.angles(positions)
        self._stretch(angles, positions, spans, context=scaling.context)
        return self._frequencies.rotate(angles, dtype)

    def _stretch(
        self, angles: torch.Tensor, positions: torch.Tensor, spans: Sequence[Span], *, context: int
    ) -> None:
        """Compute the spans that end beyond the context with the base that their length asks for.

        As everywhere, a span is rotated by the length that its request has after it; keys that
        are in the cache stay as they were rotated.
        """
        for span in (span for span in spans if span.end > context):
            stretched = frequencies(self._config, length=span.end).to(angles.device)
            angles[span.rows] = positions[span.rows].float().unsqueeze(-1) * stretched


def frequencies(config: RopeConfig, *, length: int = 0) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions; length matters to dynamic only."""
    scaling = config.scaling
    plain = _plain(config.theta, config.rotated)
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor
    if isinstance(scaling, DynamicScaling):
        return _plain(_stretched_theta(config, scaling, length), config.rotated)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(config, scaling)
    return plain


def attention_scale(config: RopeConfig) -> float:
    """Return what cosines and sines are multiplied by; other than 1 for yarn only."""
    scaling = config.scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        over = _yarn_scale(scaling.factor, scaling.mscale)
        return over / _yarn_scale(scaling.factor, scaling.mscale_all_dim)
    return _yarn_scale(scaling.factor, 1.0)


def _plain(theta: float, rotated: int) -> torch.Tensor:
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
    return 1.0 / theta**exponents


def _stretched_theta(config: RopeConfig, scaling: DynamicScaling, length: int) -> float:
    length, rotated = max(length, scaling.context), config.rotated
    if rotated == 2:  # One frequency, which is 1 for every base.
        return config.theta
    growth = scaling.factor * length / scaling.context - (scaling.factor - 1)
    return float(config.theta * growth ** (rotated / (rotated - 2)))


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / plain
    divided = plain / scaling.factor
    blend = (scaling.context / wavelengths - scaling.low_factor) / (
        scaling.high_factor - scaling.low_factor
    )
    blended = (1 - blend) * divided + blend * plain
    slow = torch.where(wavelengths > scaling.context / scaling.low_factor, divided, blended)
    return torch.where(wavelengths < scaling.context / scaling.high_factor, plain, slow)


def _yarn(config: RopeConfig, scaling: YarnScaling) -> torch.Tensor:
    plain = _plain(config.theta, config.rotated)
    low = _yarn_dimension(config, scaling.beta_fast, scaling.context)
    high = _yarn_dimension(config, scaling.beta_slow, scaling.context)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotated - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(config.rotated // 2, dtype=torch.float32) - low) / (high - low)
    interpolated = ramp.clamp(0, 1)
    return plain / scaling.factor * interpolated + plain * (1 - interpolated)


def _yarn_dimension(config: RopeConfig, turns: float, context: int) -> float:
    """Return the dimension that turns this often within the context."""
    ratio = math.log(context / (turns * 2 * math.pi))
    return config.rotated * ratio / (2 * math.log(config.theta))


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
