"""Rotary position embedding: a GGUF's scaling keys and factors as Hugging Face's parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.convert.gguf_metadata import GgufMetadata

# The settings of every published Llama 3.x. The file has only the frequencies they lead to.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
_FACTOR_TOLERANCE = 1e-4
_THETA_DEFAULT = 10000.0


def rope_parameters(
    metadata: GgufMetadata,
    factors: Sequence[float] | None,
    *,
    head_dim: int,
    partial: bool = False,
) -> dict[str, Any]:
    """Return the rope entries of config.json, in the form of transformers 5 and of 4.

    factors: what each frequency is divided by (rope_freqs.weight), where the file has them.
    partial: whether only the first dimensions of a head may be rotated. Raises
    InvalidCheckpointError for a scaling that Hugging Face's form cannot express.
    """
    rotated = metadata.integer("{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim and not partial:
        raise InvalidCheckpointError(
            f"{metadata.path}: {metadata.key('{arch}.rope.dimension_count')} is {rotated} of "
            f"{head_dim} dimensions; rotating a part of them is not supported for this architecture"
        )
    theta = metadata.number("{arch}.rope.freq_base", _THETA_DEFAULT)
    scaling = _scaling(metadata)
    if factors is not None:
        if scaling:
            raise InvalidCheckpointError(
                f"{metadata.path}: rope_freqs.weight and rope.scaling.type "
                f"{scaling['rope_type']!r} are both there; no configuration has both"
            )
        scaling = _llama3(metadata, factors, theta=theta, head_dim=head_dim)
    parameters = {"rope_type": "default", "rope_theta": theta, **scaling}
    if partial:
        parameters["partial_rotary_factor"] = rotated / head_dim
    if metadata.has("{arch}.rope.dimension_sections"):  # Of texts, all sections are at one place.
        sections = metadata.integers("{arch}.rope.dimension_sections")
        parameters |= {"mrope_section": sections[:3], "mrope_interleaved": True}
    return {
        "rope_parameters": parameters,
        "rope_theta": theta,
        "rope_scaling": scaling or None,
    }


def _scaling(metadata: GgufMetadata) -> dict[str, Any]:
    kind = metadata.text("{arch}.rope.scaling.type", "none")
    if kind == "none":
        legacy = metadata.number("{arch}.rope.scale_linear", 1.0)
        return {} if legacy == 1.0 else {"rope_type": "linear", "factor": legacy}
    factor = metadata.number("{arch}.rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise InvalidCheckpointError(
            f"{metadata.path}: {metadata.key('{arch}.rope.scaling.type')} {kind!r} is not "
            "supported (known: none, linear, yarn)"
        )
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if metadata.has("{arch}.rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = metadata.integer(
            "{arch}.rope.scaling.original_context_length"
        )
    for name in ("beta_fast", "beta_slow"):
        if metadata.has(f"{{arch}}.rope.scaling.yarn_{name}"):
            scaling[name] = metadata.number(f"{{arch}}.rope.scaling.yarn_{name}")
    attention = metadata.number("{arch}.rope.scaling.attn_factor", 1.0)
    if attention != 1.0:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return scaling


def _llama3(
    metadata: GgufMetadata, factors: Sequence[float], *, theta: float, head_dim: int
) -> dict[str, Any]:
    """Return Llama 3's scaling if it leads to the factors in the file."""
    factor = float(max(factors, default=1.0))
    if all(abs(value - 1.0) < _FACTOR_TOLERANCE for value in factors):
        return {}
    expected = llama3_factors(theta=theta, head_dim=head_dim, factor=factor)
    close = len(expected) == len(factors) and all(
        math.isclose(left, right, rel_tol=_FACTOR_TOLERANCE)
        for left, right in zip(expected, factors, strict=False)
    )
    if not close:
        raise InvalidCheckpointError(
            f"{metadata.path}: rope_freqs.weight does not follow from Llama 3's scaling (factor "
            f"{factor}, low {_LLAMA3_LOW}, high {_LLAMA3_HIGH}, context {_LLAMA3_CONTEXT}), and "
            "config.json cannot hold free factors: convert from the original safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def llama3_factors(*, theta: float, head_dim: int, factor: float) -> list[float]:
    """Return what Llama 3's scaling divides each frequency by (rope_freqs.weight)."""
    found = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        if wavelength < _LLAMA3_CONTEXT / _LLAMA3_HIGH:
            found.append(1.0)
        elif wavelength > _LLAMA3_CONTEXT / _LLAMA3_LOW:
            found.append(factor)
        else:
            smooth = (_LLAMA3_CONTEXT / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found
