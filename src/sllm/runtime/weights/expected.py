"""Which tensors a model has, with which shapes: what a checkpoint is held against.

Names are Hugging Face's without their prefix: 'self_attn.q_proj.weight' in a layer, and
'embed_tokens.weight', 'norm.weight', 'lm_head.weight' around the layers. A tensor of three
dimensions (experts in one piece) counts as a matrix, its leading dimensions as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.config.model import AttentionConfig, DeltaConfig, MlpConfig, MoeConfig

if TYPE_CHECKING:
    from sllm.runtime.config.model import LayerConfig, ModelConfig

Shapes = dict[str, tuple[int, ...]]

# Tensors that are used as numbers rather than multiplied by, by the end of their name.
_VECTORS = ("norm.weight", ".bias", ".conv1d.weight", ".A_log", ".dt_bias")


def is_vector(name: str) -> bool:
    """Return whether a tensor is small and used as plain numbers."""
    return name.endswith(_VECTORS)


def end_shapes(config: ModelConfig) -> Shapes:
    """Return the tensors before the first layer and after the last."""
    shapes: Shapes = {
        "embed_tokens.weight": (config.vocabulary, config.hidden),
        "norm.weight": (config.hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocabulary, config.hidden)
    return shapes


def layer_shapes(config: ModelConfig, index: int) -> Shapes:
    """Return the tensors of a layer, each expert's by itself."""
    layer = config.layers[index]
    return {
        "input_layernorm.weight": (config.hidden,),
        "post_attention_layernorm.weight": (config.hidden,),
        **_mixer_shapes(layer, config.hidden),
        **_mlp_shapes(layer, config.hidden),
    }


def expert_shapes(moe: MoeConfig, hidden: int, number: int) -> Shapes:
    """Return the tensors of one expert."""
    return _dense_shapes(f"mlp.experts.{number}", moe.width, hidden, bias=False)


def _mixer_shapes(layer: LayerConfig, hidden: int) -> Shapes:
    match layer.mixer:
        case AttentionConfig() as attention:
            return _attention_shapes(attention, hidden)
        case DeltaConfig() as delta:
            return _delta_shapes(delta, hidden)


def _attention_shapes(attention: AttentionConfig, hidden: int) -> Shapes:
    queries = attention.heads * attention.head_dim
    keys = attention.kv_heads * attention.head_dim
    stored = queries * (2 if attention.gated else 1)
    shapes: Shapes = {
        "self_attn.q_proj.weight": (stored, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }
    if attention.qkv_bias:
        shapes["self_attn.q_proj.bias"] = (stored,)
        shapes["self_attn.k_proj.bias"] = shapes["self_attn.v_proj.bias"] = (keys,)
    if attention.output_bias:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if attention.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (
            attention.head_dim,
        )
    return shapes


def _delta_shapes(delta: DeltaConfig, hidden: int) -> Shapes:
    shapes: Shapes = {
        "linear_attn.conv1d.weight": (delta.convolved_width, 1, delta.kernel),
        "linear_attn.A_log": (delta.value_heads,),
        "linear_attn.dt_bias": (delta.value_heads,),
        "linear_attn.norm.weight": (delta.value_dim,),
        "linear_attn.out_proj.weight": (hidden, delta.values_width),
    }
    if delta.grouped:
        width = delta.convolved_width + delta.values_width
        shapes["linear_attn.in_proj_qkvz.weight"] = (width, hidden)
        shapes["linear_attn.in_proj_ba.weight"] = (2 * delta.value_heads, hidden)
        return shapes
    shapes["linear_attn.in_proj_qkv.weight"] = (delta.convolved_width, hidden)
    shapes["linear_attn.in_proj_z.weight"] = (delta.values_width, hidden)
    shapes["linear_attn.in_proj_b.weight"] = (delta.value_heads, hidden)
    shapes["linear_attn.in_proj_a.weight"] = (delta.value_heads, hidden)
    return shapes


def _mlp_shapes(layer: LayerConfig, hidden: int) -> Shapes:
    match layer.mlp:
        case MlpConfig(width=width, bias=bias):
            return _dense_shapes("mlp", width, hidden, bias=bias)
        case MoeConfig() as moe:
            shapes: Shapes = {"mlp.gate.weight": (moe.experts, hidden)}
            for number in range(moe.experts):
                shapes |= expert_shapes(moe, hidden, number)
            if moe.shared_width is not None:
                shapes |= _dense_shapes("mlp.shared_expert", moe.shared_width, hidden, bias=False)
                shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
            return shapes


def _dense_shapes(prefix: str, width: int, hidden: int, *, bias: bool) -> Shapes:
    shapes: Shapes = {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }
    if bias:
        for projection, rows in (("gate_proj", width), ("up_proj", width), ("down_proj", hidden)):
            shapes[f"{prefix}.{projection}.bias"] = (rows,)
    return shapes
