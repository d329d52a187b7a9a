"""Configurations out of key-values, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from sllm_store.convert.gguf_architecture import find_architecture
from sllm_store.convert.gguf_config import build_config, build_generation_config
from sllm_store.convert.gguf_metadata import GgufMetadata
from sllm_store.errors import InvalidCheckpointError

SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (1000, 64),
    "output.weight": (1000, 64),
    "blk.0.attn_q.bias": (64,),
    "blk.0.ffn_gate_exps.weight": (8, 48, 64),
    "blk.0.ffn_gate_shexp.weight": (56, 64),
}


def values_of(architecture: str, **changes: object) -> dict[str, object]:
    hyperparameters: dict[str, object] = {
        "block_count": 3,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "attention.layer_norm_epsilon": 9.999999747378752e-06,
        "rope.freq_base": 1e6,
        "expert_used_count": 2,
        "expert_count": 0 if architecture == "llama" else 8,
    } | changes
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        **{f"{architecture}.{key}": value for key, value in hyperparameters.items()},
    }


def config_of(values: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    metadata = GgufMetadata(path=Path("model.gguf"), values=values)
    return build_config(metadata, find_architecture(metadata), shapes, dtype="float16")


def test_llama_has_everything_that_transformers_wants(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(values_of("llama"), SHAPES)))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "llama"
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (64, 128, 16)
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, 4)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (2, 512)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert config.attention_bias is True
    assert config.tie_word_embeddings is False
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert (config.vocab_size, str(config.dtype)) == (1000, "torch.float16")


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("llama", {"expert_count": 8}, {"model_type": "mixtral", "num_local_experts": 8}),
        ("qwen2", {}, {"model_type": "qwen2", "use_sliding_window": False}),
        ("qwen3", {"attention.key_length": 32}, {"model_type": "qwen3", "head_dim": 32}),
        (
            "qwen2moe",
            {},
            {
                "model_type": "qwen2_moe",
                "num_experts": 8,
                "moe_intermediate_size": 48,
                "shared_expert_intermediate_size": 56,
                "norm_topk_prob": False,
            },
        ),
        (
            "qwen3moe",
            {"feed_forward_length": None, "expert_feed_forward_length": 48},
            {
                "model_type": "qwen3_moe",
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "intermediate_size": 48,
                "norm_topk_prob": True,
            },
        ),
        ("gpt2", {}, {"model_type": "gpt2", "n_embd": 64, "n_inner": 128, "n_positions": 512}),
    ],
)
def test_each_architecture_says_what_is_its_own(
    architecture: str, changes: dict[str, object], expected: dict[str, object]
) -> None:
    values = values_of(architecture, **changes)
    values = {key: value for key, value in values.items() if value is not None}
    config = config_of(values, SHAPES)
    assert {key: config[key] for key in expected} == expected


def test_without_an_output_tensor_the_embedding_is_the_output() -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if name != "output.weight"}
    assert config_of(values_of("qwen2"), shapes)["tie_word_embeddings"] is True


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidCheckpointError, match=r"'mamba' cannot be converted.*gpt2, llama"):
        config_of(values_of("mamba"), SHAPES)


def test_a_missing_embedding_is_named() -> None:
    with pytest.raises(InvalidCheckpointError, match=r"token_embd\.weight is missing"):
        config_of(values_of("llama"), {})


def generation_of(**changes: object) -> dict[str, Any]:
    values = values_of("llama") | changes
    return build_generation_config(GgufMetadata(path=Path("model.gguf"), values=values))


def test_generation_stops_at_the_end_token() -> None:
    assert generation_of() == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def test_generation_stops_at_the_end_of_a_turn_too() -> None:
    found = generation_of(**{"tokenizer.ggml.eot_token_id": 7})
    assert found["eos_token_id"] == [2, 7]


def test_the_end_of_a_turn_is_found_in_the_chat_template() -> None:
    found = generation_of(
        **{
            "tokenizer.chat_template": "<|im_start|>{{ content }}<|im_end|>",
            "tokenizer.ggml.tokens": ["<pad>", "<s>", "</s>", "<|im_end|>", "<|end|>"],
        }
    )
    assert found["eos_token_id"] == [2, 3]
