"""ModelConfig: everything a forward pass needs to know about a model, besides its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm.runtime.config.rope import RopeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Softmax attention with grouped heads.

    window: how many tokens, itself included, a token sees; None for all. gated: the output is
    multiplied by the sigmoid of a gate that comes with the query. qk_norm: query and key heads
    are normalised before rotation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    gated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaConfig:
    """Gated DeltaNet: linear attention whose state has a fixed size.

    grouped: the projections are stored as Qwen3-Next does, interleaved by key head.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    grouped: bool

    @property
    def keys_width(self) -> int:
        """Width of all keys of one token; queries have the same."""
        return self.key_heads * self.key_dim

    @property
    def values_width(self) -> int:
        """Width of all values of one token."""
        return self.value_heads * self.value_dim

    @property
    def convolved_width(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys_width + self.values_width


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """A gated MLP: down(silu(gate(x)) * up(x))."""

    width: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A mixture of experts: `chosen` of `experts` MLPs per token, and perhaps one for every token.

    normalised: the chosen experts' weights are scaled to sum to one.
    """

    experts: int
    chosen: int
    width: int
    normalised: bool
    shared_width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """One decoder layer: what mixes tokens, and what follows."""

    mixer: AttentionConfig | DeltaConfig
    mlp: MlpConfig | MoeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only language model.

    norm_offset is added to the stored weight of every RMSNorm but the gated one; dtype is the
    one the checkpoint was published in.
    """

    model_type: str
    vocabulary: int
    hidden: int
    layers: tuple[LayerConfig, ...]
    norm_epsilon: float
    norm_offset: float
    rope: RopeConfig
    tied: bool
    context: int
    dtype: str
