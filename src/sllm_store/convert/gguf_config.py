"""Hugging Face's config.json and generation_config.json out of a GGUF's key-values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm_store.convert.gguf_architecture import layer_count
from sllm_store.convert.gguf_delta import NEXT, QWEN35, DeltaHeads
from sllm_store.convert.gguf_rope import rope_parameters
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm_store.convert.gguf_architecture import Architecture
    from sllm_store.convert.gguf_metadata import GgufMetadata

# What llama.cpp looks for when a file does not say which token ends a turn.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def build_config(
    metadata: GgufMetadata,
    architecture: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str,
    rope_factors: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return config.json.

    shapes: every GGUF tensor's, by its name there; dtype: what most weights have become;
    rope_factors: the contents of rope_freqs.weight, where there is one.
    """
    build = _BUILDERS[architecture.model_type]
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else 0,
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        **build(metadata, shapes),
        **_token_ids(metadata),
    }
    if config["vocab_size"] == 0:
        raise InvalidCheckpointError(f"{metadata.path}: the tensor token_embd.weight is missing")
    if architecture.model_type != "gpt2":
        config |= rope_parameters(
            metadata,
            rope_factors,
            head_dim=config["head_dim"],
            partial=architecture.model_type in {NEXT, QWEN35},
        )
    return config


def build_generation_config(metadata: GgufMetadata) -> dict[str, Any]:
    """Return generation_config.json: where to start and where to stop, nothing about sampling."""
    ids = _token_ids(metadata)
    stops = [ids["eos_token_id"]] if "eos_token_id" in ids else []
    stops += [stop for stop in _other_stops(metadata) if stop not in stops]
    if stops:
        ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    return ids


def _token_ids(metadata: GgufMetadata) -> dict[str, Any]:
    keys = {
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
    }
    return {name: metadata.integer(key) for name, key in keys.items() if metadata.has(key)}


def _other_stops(metadata: GgufMetadata) -> list[int]:
    """Return the tokens that end a turn although they are not the end of a text."""
    stops = [
        metadata.integer(key)
        for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        if metadata.has(key)
    ]
    template = metadata.text("tokenizer.chat_template", "")
    if metadata.has("tokenizer.ggml.eot_token_id") or not template:
        return stops
    tokens = metadata.texts("tokenizer.ggml.tokens")
    return stops + [tokens.index(t) for t in _END_OF_TURN if t in template and t in tokens]


def _decoder(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return what Llama and its relatives have in common."""
    hidden = metadata.integer("{arch}.embedding_length")
    heads = metadata.integer("{arch}.attention.head_count")
    head_dim = metadata.integer("{arch}.attention.key_length", hidden // max(heads, 1))
    return {
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _intermediate_size(metadata),
        "num_hidden_layers": layer_count(metadata),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer("{arch}.context_length"),
        "rms_norm_eps": metadata.number("{arch}.attention.layer_norm_rms_epsilon"),
    }


def _intermediate_size(metadata: GgufMetadata) -> int:
    """Return the width of the MLP; a file with experts alone has only theirs."""
    if metadata.has("{arch}.expert_feed_forward_length"):
        experts = metadata.integer("{arch}.expert_feed_forward_length")
        return metadata.integer("{arch}.feed_forward_length", experts)
    return metadata.integer("{arch}.feed_forward_length")


def _llama(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **_decoder(metadata, shapes),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
    }


def _mixtral(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **_decoder(metadata, shapes),
        "num_local_experts": metadata.integer("{arch}.expert_count"),
        "num_experts_per_tok": metadata.integer("{arch}.expert_used_count"),
        "sliding_window": None,
    }


def _qwen2(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {**_decoder(metadata, shapes), "use_sliding_window": False}


def _qwen3(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in shapes
    return {**_decoder(metadata, shapes), "attention_bias": bias, "use_sliding_window": False}


def _experts(metadata: GgufMetadata) -> dict[str, Any]:
    return {
        "num_experts": metadata.integer("{arch}.expert_count"),
        "num_experts_per_tok": metadata.integer("{arch}.expert_used_count"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2_moe(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **_decoder(metadata, shapes),
        **_experts(metadata),
        "moe_intermediate_size": shapes["blk.0.ffn_gate_exps.weight"][1],
        "shared_expert_intermediate_size": shapes["blk.0.ffn_gate_shexp.weight"][0],
        "norm_topk_prob": False,  # llama.cpp does not normalise here, and the file cannot say.
        "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "use_sliding_window": False,
    }


def _qwen3_moe(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **_qwen3(metadata, shapes),
        **_experts(metadata),
        "moe_intermediate_size": shapes["blk.0.ffn_gate_exps.weight"][1],
        "norm_topk_prob": True,  # llama.cpp normalises here, and the file cannot say.
    }


def _hybrid(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return what Qwen3-Next and Qwen3.5-MoE have in common."""
    heads = DeltaHeads.read(metadata)
    layers = layer_count(metadata)
    linear = [f"blk.{layer}.ssm_conv1d.weight" in shapes for layer in range(layers)]
    return {
        **_decoder(metadata, shapes),
        "attention_bias": any(f"blk.{layer}.attn_q.bias" in shapes for layer in range(layers)),
        "num_experts": metadata.integer("{arch}.expert_count"),
        "num_experts_per_tok": metadata.integer("{arch}.expert_used_count"),
        "moe_intermediate_size": metadata.integer("{arch}.expert_feed_forward_length"),
        "shared_expert_intermediate_size": metadata.integer(
            "{arch}.expert_shared_feed_forward_length"
        ),
        "linear_num_key_heads": heads.keys,
        "linear_num_value_heads": heads.values,
        "linear_key_head_dim": heads.key_dim,
        "linear_value_head_dim": heads.value_dim,
        "linear_conv_kernel_dim": metadata.integer("{arch}.ssm.conv_kernel"),
        "layer_types": ["linear_attention" if one else "full_attention" for one in linear],
    }


def _qwen3_next(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **_hybrid(metadata, shapes),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,  # llama.cpp normalises here, and the file cannot say.
    }


def _gpt2(metadata: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    context = metadata.integer("{arch}.context_length")
    return {
        "activation_function": "gelu_new",
        "n_embd": metadata.integer("{arch}.embedding_length"),
        "n_head": metadata.integer("{arch}.attention.head_count"),
        "n_layer": metadata.integer("{arch}.block_count"),
        "n_inner": metadata.integer("{arch}.feed_forward_length"),
        "n_positions": context,
        "n_ctx": context,
        "layer_norm_epsilon": metadata.number("{arch}.attention.layer_norm_epsilon"),
    }


_BUILDERS: dict[str, Callable[[GgufMetadata, Mapping[str, tuple[int, ...]]], dict[str, Any]]] = {
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    NEXT: _qwen3_next,
    QWEN35: _hybrid,
    "gpt2": _gpt2,
}
