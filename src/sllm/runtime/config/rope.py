"""Rotary position embedding: its parameters in config.json, in the forms of transformers 4 and 5.

What each scaling does to the frequencies is in `sllm.runtime.layers.rope`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.config.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable

INTERLEAVED = "rope_interleave"
_THETA_DEFAULT = 10000.0
_EVERY_TYPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# What these say of images; for text alone every section has the token's position.
_MULTIMODAL = {"mrope_section", "mrope_interleaved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions divided by a factor."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScaling:
    """A base that grows with the sequence beyond the context it was trained on."""

    factor: float
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Slow frequencies interpolated, fast ones kept, a ramp between; attention is scaled."""

    factor: float
    context: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's: slow frequencies divided by a factor, fast ones kept, a blend between."""

    factor: float
    low_factor: float
    high_factor: float
    context: int


Scaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How positions rotate queries and keys.

    rotated: how many dimensions of a head, from its first. interleaved: pairs are neighbours, as
    llama.cpp stores the rows of Llama's q and k; otherwise a dimension's partner is half of
    `rotated` away.
    """

    theta: float
    rotated: int
    scaling: Scaling | None = None
    interleaved: bool = False


def parse_rope(config: Fields, *, head_dim: int, partial_default: float = 1.0) -> RopeConfig:
    """Return the rope of a config.json.

    Raises UnsupportedModelError for a scaling, or a parameter of one, that is not computed.
    """
    scaling = config.nested("rope_scaling")
    parameters = scaling or config.nested("rope_parameters") or Fields({}, config.where)
    theta = config.number("rope_theta", _THETA_DEFAULT)
    partial = config.number("partial_rotary_factor", partial_default)
    rotated = int(head_dim * parameters.number("partial_rotary_factor", partial))
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise config.invalid(
            "partial_rotary_factor", f"rotates {rotated} of {head_dim} dimensions, not even pairs"
        )
    theta = parameters.number("rope_theta", theta)
    if theta <= 1:
        raise config.invalid("rope_theta", f"is {theta}, not above 1")
    return RopeConfig(
        theta=theta,
        rotated=rotated,
        scaling=_parse_scaling(parameters, context=config.size("max_position_embeddings")),
        interleaved=config.flag(INTERLEAVED, default=False),
    )


def _parse_scaling(parameters: Fields, *, context: int) -> Scaling | None:
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind in {"default", "mrope"}:
        _refuse_others(parameters, kind, set())
        return None
    if kind not in _SCALINGS:
        raise UnsupportedModelError(
            f"{parameters.where}: rope type {kind!r} is not computed (known: default, "
            f"{', '.join(_SCALINGS)})"
        )
    known, parse = _SCALINGS[kind]
    _refuse_others(parameters, kind, known)
    return parse(parameters, context)


def _refuse_others(parameters: Fields, kind: str, known: set[str]) -> None:
    others = {name for name in parameters.values if parameters.has(name)}
    others -= known | _EVERY_TYPE | _MULTIMODAL
    if others:
        raise UnsupportedModelError(
            f"{parameters.where}: {', '.join(sorted(others))}: not a known parameter of rope type "
            f"{kind!r}, so what it does is not computed"
        )


def _linear(parameters: Fields, context: int) -> Scaling:
    return LinearScaling(factor=parameters.number("factor"))


def _dynamic(parameters: Fields, context: int) -> Scaling:
    return DynamicScaling(factor=parameters.number("factor"), context=context)


def _yarn(parameters: Fields, context: int) -> Scaling:
    original = parameters.size("original_max_position_embeddings", context)

    def optional(name: str) -> float | None:
        return parameters.number(name) if parameters.has(name) else None

    return YarnScaling(
        factor=parameters.number("factor", context / original),
        context=original,
        beta_fast=parameters.number("beta_fast", 32.0),
        beta_slow=parameters.number("beta_slow", 1.0),
        truncate=parameters.flag("truncate", default=True),
        attention_factor=optional("attention_factor"),
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
    )


def _llama3(parameters: Fields, context: int) -> Scaling:
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if low >= high:
        raise parameters.invalid("low_freq_factor", f"is {low}, not below high_freq_factor {high}")
    return Llama3Scaling(
        factor=parameters.number("factor"),
        low_factor=low,
        high_factor=high,
        context=parameters.size("original_max_position_embeddings", context),
    )


_SCALINGS: dict[str, tuple[set[str], Callable[[Fields, int], Scaling]]] = {
    "linear": ({"factor"}, _linear),
    "dynamic": ({"factor", "original_max_position_embeddings"}, _dynamic),
    "yarn": (
        {
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
        },
        _yarn,
    ),
    "llama3": (
        {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        },
        _llama3,
    ),
}
