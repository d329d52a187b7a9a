"""One parser per family of architectures: config.json in, ModelConfig out.

A feature that changes what a model computes is either parsed here or refused: an unknown one must
not be dropped in silence. What may be absent has the
default of Transformers; what has another default in each of its models must be there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.config.fields import Fields
from sllm.runtime.config.model import (
    AttentionConfig,
    DeltaConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from sllm.runtime.config.rope import parse_rope
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

CONFIG_FILE = "config.json"
LAYERS_MAX = 4096
BYTES_MAX = 16 << 20
AFFINE_GROUPS = (64, 128)
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
# Fields whose other values would change the result, and the only value that is computed.
_ONLY: dict[str, object] = {
    "hidden_act": "silu",
    "hidden_activation": "silu",
    "rope_interleaved": False,
    "is_encoder_decoder": False,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def read_config(directory: Path, *, where: str | None = None) -> ModelConfig:
    """Return the model that a directory's config.json describes; errors name it, or `where`."""
    path = directory / CONFIG_FILE
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
        values = json.loads(text) if len(text) <= BYTES_MAX else None
    except OSError as error:
        raise InvalidCheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidCheckpointError(f"{path}: not a JSON object of at most {BYTES_MAX} bytes")
    return parse_config(values, where=path if where is None else where)


def parse_config(values: Mapping[str, Any], *, where: Path | str = CONFIG_FILE) -> ModelConfig:
    """Return the model that a config.json describes.

    Raises UnsupportedModelError for an architecture or a feature that is not computed,
    InvalidCheckpointError for a field that makes no sense; both name the field.
    """
    config = top = Fields(values, where)
    model_type = config.text("model_type")
    text = config.nested("text_config")
    if text is not None and model_type in _WITH_TEXT:
        config, model_type = text, text.text("model_type", _WITH_TEXT[model_type])
    if model_type not in _FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type {model_type!r} is not computed "
            f"(known: {', '.join(sorted(_FAMILIES))})"
        )
    for name, allowed in _ONLY.items():
        config.require(name, allowed)
    for part in (top, config):
        _require_affine(part.nested("quantization"))
        _require_affine(part.nested("quantization_config"))
    return _FAMILIES[model_type](config, model_type)


def _require_affine(quantization: Fields | None) -> None:
    """Refuse weights that are neither floats nor MLX's affine four bits."""
    if quantization is None:
        return
    method = quantization.values.get("quant_method")
    if method is not None:
        raise UnsupportedModelError(
            f"{quantization.where}: weights quantised by {method!r} are not computed: take the "
            "model in 16 bits, a GGUF of it, or MLX's four bits"
        )
    quantization.require("bits", 4)
    quantization.require("mode", "affine")
    if quantization.size("group_size") not in AFFINE_GROUPS:
        raise UnsupportedModelError(
            f"{quantization.where}: group_size is {quantization.size('group_size')}; the runtime "
            f"computes {' and '.join(map(str, AFFINE_GROUPS))}"
        )
    for name, value in quantization.values.items():
        if not isinstance(value, str | int | None):
            raise UnsupportedModelError(
                f"{quantization.where}: {name} is quantised by itself, which is not computed"
            )


def _llama(config: Fields, model_type: str) -> ModelConfig:
    bias = config.flag("attention_bias", default=False)
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)  # Absent from the first Llamas.
    attention = replace(_attention(config, kv_heads), qkv_bias=bias, output_bias=bias)
    mlp = _mlp(config, bias=config.flag("mlp_bias", default=False))
    return _model(config, model_type, [LayerConfig(mixer=attention, mlp=mlp)] * _depth(config))


def _mistral(config: Fields, model_type: str) -> ModelConfig:
    window = config.size("sliding_window") if config.has("sliding_window") else None
    if "sliding_window" not in config.values:  # Null means none; absent means the first Mistral's.
        window = 4096
    layer = LayerConfig(mixer=replace(_attention(config), window=window), mlp=_mlp(config))
    return _model(config, model_type, [layer] * _depth(config))


def _qwen2(config: Fields, model_type: str) -> ModelConfig:
    attention, mlp = replace(_attention(config), qkv_bias=True), _mlp(config)
    windows = _qwen_windows(config)
    layers = [LayerConfig(mixer=replace(attention, window=w), mlp=mlp) for w in windows]
    return _model(config, model_type, layers)


def _qwen3(config: Fields, model_type: str) -> ModelConfig:
    config.size("head_dim")
    attention, mlp = _qwen3_attention(config), _mlp(config)
    windows = _qwen_windows(config)
    layers = [LayerConfig(mixer=replace(attention, window=w), mlp=mlp) for w in windows]
    return _model(config, model_type, layers)


def _qwen3_moe(config: Fields, model_type: str) -> ModelConfig:
    sliding = config.flag("use_sliding_window", default=False)
    window = config.size("sliding_window", 4096) if sliding else None
    attention = replace(_qwen3_attention(config), window=window)
    moe = _moe(config, normalised=config.flag("norm_topk_prob", default=False))
    layers = [LayerConfig(mixer=attention, mlp=mlp) for mlp in _sparse(config, moe)]
    return _model(config, model_type, layers)


def _qwen3_next(config: Fields, model_type: str) -> ModelConfig:
    moe = _moe(config, normalised=config.flag("norm_topk_prob", default=True), shared=True)
    return _hybrid(config, model_type, _sparse(config, moe), grouped=True)


def _qwen35_moe(config: Fields, model_type: str) -> ModelConfig:
    moe = _moe(config, normalised=True, shared=True)
    return _hybrid(config, model_type, [moe] * _depth(config), grouped=False)


def _hybrid(
    config: Fields, model_type: str, mlps: Sequence[MlpConfig | MoeConfig], *, grouped: bool
) -> ModelConfig:
    """Three layers of gated DeltaNet, then one of gated attention, and again."""
    config.size("head_dim")
    interval = config.size("full_attention_interval", 4)
    default = [_LINEAR if (index + 1) % interval else _FULL for index in range(len(mlps))]
    delta = DeltaConfig(
        key_heads=config.size("linear_num_key_heads", 16),
        value_heads=config.size("linear_num_value_heads", 32),
        key_dim=config.size("linear_key_head_dim", 128),
        value_dim=config.size("linear_value_head_dim", 128),
        kernel=config.size("linear_conv_kernel_dim", 4),
        grouped=grouped,
    )
    if delta.value_heads % delta.key_heads:
        raise config.invalid(
            "linear_num_value_heads",
            f"is {delta.value_heads}, no multiple of linear_num_key_heads {delta.key_heads}",
        )
    mixers: dict[str, AttentionConfig | DeltaConfig] = {
        _FULL: replace(_qwen3_attention(config), gated=True),
        _LINEAR: delta,
    }
    kinds = _layer_types(config, default, known=tuple(mixers))
    layers = [
        LayerConfig(mixer=mixers[kind], mlp=mlp) for kind, mlp in zip(kinds, mlps, strict=True)
    ]
    return _model(config, model_type, layers, norm_offset=1.0, partial_rotary=0.25)


def _model(
    config: Fields,
    model_type: str,
    layers: Sequence[LayerConfig],
    *,
    norm_offset: float = 0.0,
    partial_rotary: float = 1.0,
) -> ModelConfig:
    head_dim = next(
        (layer.mixer.head_dim for layer in layers if isinstance(layer.mixer, AttentionConfig)),
        None,
    )
    if head_dim is None:
        raise config.invalid("layer_types", "has no layer of attention")
    return ModelConfig(
        model_type=model_type,
        vocabulary=config.size("vocab_size"),
        hidden=config.size("hidden_size"),
        layers=tuple(layers),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        norm_offset=norm_offset,
        rope=parse_rope(config, head_dim=head_dim, partial_default=partial_rotary),
        tied=config.flag("tie_word_embeddings", default=False),
        context=config.size("max_position_embeddings"),
        dtype=_dtype(config),
    )


def _dtype(config: Fields) -> str:
    dtype = config.text("dtype", config.text("torch_dtype", "float32"))
    if dtype not in {"float32", "float16", "bfloat16"}:
        raise config.invalid("dtype", f"is {dtype!r}, not float32, float16 or bfloat16")
    return dtype


def _depth(config: Fields) -> int:
    depth = config.size("num_hidden_layers")
    if depth > LAYERS_MAX:
        raise config.invalid("num_hidden_layers", f"is {depth}; at most {LAYERS_MAX} are computed")
    return depth


def _attention(config: Fields, kv_heads: int | None = None) -> AttentionConfig:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = kv_heads or config.size("num_key_value_heads")
    if heads % kv_heads:
        raise config.invalid("num_key_value_heads", f"is {kv_heads}, no divisor of {heads} heads")
    if not config.has("head_dim") and hidden % heads:
        raise config.invalid("num_attention_heads", f"is {heads}, no divisor of {hidden}")
    head_dim = config.size("head_dim", max(hidden // heads, 1))
    return AttentionConfig(heads=heads, kv_heads=kv_heads, head_dim=head_dim)


def _qwen3_attention(config: Fields) -> AttentionConfig:
    bias = config.flag("attention_bias", default=False)
    return replace(_attention(config), qk_norm=True, qkv_bias=bias, output_bias=bias)


def _qwen_windows(config: Fields) -> list[int | None]:
    """Return each layer's window: Qwen's slide from max_window_layers on, if at all."""
    sliding = config.flag("use_sliding_window", default=False)
    window = config.size("sliding_window", 4096) if sliding else None
    first = config.count("max_window_layers", 28)
    default = [
        _SLIDING if window is not None and index >= first else _FULL
        for index in range(_depth(config))
    ]
    kinds = _layer_types(config, default, known=(_FULL, _SLIDING))
    if _SLIDING in kinds and window is None:
        raise config.invalid("layer_types", "has sliding attention, but use_sliding_window is off")
    return [window if kind == _SLIDING else None for kind in kinds]


def _layer_types(config: Fields, default: list[str], *, known: tuple[str, ...]) -> list[str]:
    kinds = list(config.texts("layer_types")) or default
    if len(kinds) != len(default):
        raise config.invalid("layer_types", f"has {len(kinds)} entries for {len(default)} layers")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(
                f"{config.where}: layer_types has {kind!r}; only {' and '.join(known)} are "
                "computed for this model"
            )
    return kinds


def _mlp(config: Fields, *, bias: bool = False) -> MlpConfig:
    return MlpConfig(width=config.size("intermediate_size"), bias=bias)


def _moe(config: Fields, *, normalised: bool, shared: bool = False) -> MoeConfig:
    name = "num_experts" if config.has("num_experts") else "num_local_experts"
    experts = config.size(name)
    chosen = config.size("num_experts_per_tok")
    if chosen > experts:
        raise config.invalid("num_experts_per_tok", f"is {chosen} of {experts} experts")
    return MoeConfig(
        experts=experts,
        chosen=chosen,
        width=config.size("moe_intermediate_size"),
        normalised=normalised,
        shared_width=config.size("shared_expert_intermediate_size") if shared else None,
    )


def _sparse(config: Fields, moe: MoeConfig) -> list[MlpConfig | MoeConfig]:
    """Return each layer's MLP: every decoder_sparse_step-th has experts, unless it is listed."""
    step, dense = config.size("decoder_sparse_step", 1), set(config.counts("mlp_only_layers"))
    return [
        moe if (index + 1) % step == 0 and index not in dense else _mlp(config)
        for index in range(_depth(config))
    ]


_FAMILIES: dict[str, Callable[[Fields, str], ModelConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen3_next": _qwen3_next,
    "qwen3_5_moe_text": _qwen35_moe,
}
# Models that also take images; their text model is under text_config.
_WITH_TEXT = {"qwen3_5_moe": "qwen3_5_moe_text"}
