"""A config.json becomes the right ModelConfig, or an error that names the field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.config.families import parse_config, read_config
from sllm.runtime.config.model import AttentionConfig, DeltaConfig, MlpConfig, MoeConfig
from sllm.runtime.layers.rope import attention_scale, frequencies
from sllm.runtime.weights.expected import layer_shapes
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.runtime.config.model import ModelConfig

# What is published for Llama 3.1 8B, as far as it matters.
LLAMA_31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
# Qwen3.5-397B-A17B's text model.
QWEN_35: dict[str, Any] = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_value_heads": 64,
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
        "vocab_size": 248320,
    },
    "vision_config": {"depth": 27},
}


def _llama(**changes: Any) -> ModelConfig:
    return parse_config({**LLAMA_31, **changes})


def test_llama_as_published() -> None:
    config = _llama()
    assert (config.vocabulary, config.hidden, len(config.layers)) == (128256, 4096, 32)
    assert config.layers[0].mixer == AttentionConfig(heads=32, kv_heads=8, head_dim=128)
    assert config.layers[0].mlp == MlpConfig(width=14336)
    assert config.rope.theta == 500000.0
    assert config.dtype == "bfloat16"
    assert not config.tied


def test_what_is_absent_has_the_default_of_transformers() -> None:
    first_llama = {k: v for k, v in LLAMA_31.items() if k != "num_key_value_heads"}
    assert parse_config(first_llama).layers[0].mixer == AttentionConfig(
        heads=32, kv_heads=32, head_dim=128
    )
    mistral = {**LLAMA_31, "model_type": "mistral", "rope_scaling": None}
    for changes, window in (({}, 4096), ({"sliding_window": None}, None)):
        assert parse_config({**mistral, **changes}).layers[0].mixer == AttentionConfig(
            heads=32, kv_heads=8, head_dim=128, window=window
        )


def test_what_has_another_default_in_each_model_has_to_be_there() -> None:
    with pytest.raises(InvalidCheckpointError, match="num_key_value_heads is missing"):
        parse_config({**LLAMA_31, "model_type": "mistral", "num_key_value_heads": None})
    with pytest.raises(InvalidCheckpointError, match="head_dim is missing"):
        parse_config({**LLAMA_31, "model_type": "qwen3"})


def test_the_hybrid_alternates_three_layers_of_deltanet_and_one_of_attention() -> None:
    config = parse_config(QWEN_35)
    kinds = [type(layer.mixer) for layer in config.layers]
    assert kinds == [DeltaConfig, DeltaConfig, DeltaConfig, AttentionConfig] * 15
    attention, moe = config.layers[3].mixer, config.layers[0].mlp
    assert isinstance(attention, AttentionConfig)
    assert attention.gated
    assert attention.qk_norm
    assert isinstance(moe, MoeConfig)
    assert (moe.experts, moe.chosen, moe.shared_width, moe.normalised) == (512, 10, 1024, True)
    assert (config.rope.rotated, config.norm_offset) == (64, 1.0)


def test_a_file_is_read_where_a_model_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_31))
    assert read_config(tmp_path) == _llama()


@pytest.mark.parametrize("text", [None, "{", "[]", "7", "[" * 10**5, " " * 17_000_000 + "{}"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        _llama(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 24}, "num_attention_heads"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype"),
        ({"model_type": 3}, "model_type"),
        ({"rope_scaling": [1]}, "rope_scaling"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidCheckpointError, match=named):
        _llama(**changes)


SCALARS = st.sampled_from([None, True, -1, 0, 1, 3, 64, 1e-9, 0.5, 2.5, 1e300, 1 << 40, "", "yarn"])
ROPE = st.dictionaries(
    st.sampled_from(["rope_type", "factor", "rope_theta", "beta_fast", "beta_slow", "mscale"])
    | st.sampled_from(["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    SCALARS | st.sampled_from(["linear", "dynamic", "llama3"]),
)
VALUES = SCALARS | ROPE | st.lists(SCALARS, max_size=2)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([LLAMA_31, QWEN_35["text_config"], {**LLAMA_31, "model_type": "qwen2"}]),
    st.dictionaries(
        st.sampled_from(sorted({*LLAMA_31, *QWEN_35["text_config"]})), VALUES, max_size=3
    ),
)
def test_any_values_make_a_model_or_one_of_two_errors(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        model = parse_config({**config, **changes})
    except (InvalidCheckpointError, UnsupportedModelError):
        return
    assert model.layers
    assert bool(frequencies(model.rope).isfinite().all())
    assert attention_scale(model.rope) > 0
    assert layer_shapes(model, 0)


def test_layer_types_are_held_against_the_layers() -> None:
    qwen = {**LLAMA_31, "model_type": "qwen3", "head_dim": 128, "rope_scaling": None}
    with pytest.raises(InvalidCheckpointError, match="layer_types has 1 entries for 32"):
        parse_config({**qwen, "layer_types": ["full_attention"]})
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        parse_config({**qwen, "layer_types": ["chunked_attention"] * 32})
    with pytest.raises(InvalidCheckpointError, match="use_sliding_window"):
        parse_config({**qwen, "layer_types": ["sliding_attention"] * 32})


def test_a_hybrid_needs_attention_and_whole_groups_of_heads() -> None:
    text = QWEN_35["text_config"]
    with pytest.raises(InvalidCheckpointError, match="linear_num_value_heads"):
        parse_config({**text, "linear_num_value_heads": 40})
    with pytest.raises(InvalidCheckpointError, match="no layer of attention"):
        parse_config({**text, "layer_types": ["linear_attention"] * 60})
    with pytest.raises(InvalidCheckpointError, match="num_experts_per_tok"):
        parse_config({**text, "num_experts": 4})
