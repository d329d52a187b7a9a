"""Rotary embedding: scaling keys and factors as transformers understands them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sllm_store.convert.gguf_metadata import GgufMetadata
from sllm_store.convert.gguf_rope import llama3_factors, rope_parameters
from sllm_store.errors import InvalidCheckpointError


def parameters(factors: list[float] | None = None, **keys: object) -> dict[str, Any]:
    values: dict[str, object] = {"general.architecture": "llama", "llama.rope.freq_base": 500000.0}
    values |= {f"llama.rope.{key.replace('__', '.')}": value for key, value in keys.items()}
    metadata = GgufMetadata(path=Path("model.gguf"), values=values)
    return rope_parameters(metadata, factors, head_dim=128)


def test_without_scaling_there_is_only_theta() -> None:
    assert parameters() == {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rope_theta": 500000.0,
        "rope_scaling": None,
    }


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3_become_its_scaling(factor: float) -> None:
    found = parameters(llama3_factors(theta=500000.0, head_dim=128, factor=factor))

    assert found["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config: Any = LlamaConfig(hidden_size=4096, num_attention_heads=32, **found)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    expected = torch.tensor(llama3_factors(theta=500000.0, head_dim=128, factor=factor))
    torch.testing.assert_close(plain / scaled, expected)


def test_factors_of_one_are_no_scaling() -> None:
    assert parameters([1.0] * 64) == parameters()


def test_factors_that_follow_from_nothing_known_are_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="does not follow from Llama 3's scaling"):
        parameters([1.0, 3.0] * 32)


def test_factors_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="does not follow"):
        parameters(llama3_factors(theta=500000.0, head_dim=64, factor=8.0))


def test_factors_and_scaling_exclude_each_other() -> None:
    with pytest.raises(InvalidCheckpointError, match="both there"):
        parameters([2.0] * 64, scaling__type="linear", scaling__factor=2.0)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (
            {"scaling__type": "linear", "scaling__factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 4.0,
                "scaling__original_context_length": 32768,
                "scaling__yarn_beta_fast": 16.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "beta_fast": 16.0,
            },
        ),
        ({"scaling__type": "none"}, None),
    ],
)
def test_scaling_keys_become_parameters(
    keys: dict[str, Any], scaling: dict[str, object] | None
) -> None:
    found = parameters(**keys)
    assert found["rope_scaling"] == scaling
    assert found["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 500000.0,
        **(scaling or {}),
    }


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="'longrope' is not supported"):
        parameters(scaling__type="longrope")


def test_partial_rotation_is_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="is 64 of 128 dimensions"):
        parameters(dimension_count=64)
