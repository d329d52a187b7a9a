"""Frequencies equal those of Transformers; both orders of pairs are the same rotation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sllm.runtime.config.families import parse_config
from sllm.runtime.kernels.operands import Rotation
from sllm.runtime.layers.rope import attention_scale, frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
PARAMETERS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    YARN,
    {**YARN, "truncate": False, "beta_fast": 48.0, "beta_slow": 2.0},
    {**YARN, "attention_factor": 0.8},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: "-".join(map(str, p.values())))
@pytest.mark.parametrize("length", [100, 20000])
def test_frequencies_equal_those_of_transformers(parameters: dict[str, Any], length: int) -> None:
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": 500000.0, **parameters},
    )
    initialise = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    expected, scale = initialise(theirs, torch.device("cpu"), seq_len=length)
    rope = parse_config(theirs.to_dict()).rope
    torch.testing.assert_close(frequencies(rope, length=length), expected, rtol=1e-6, atol=0)
    assert attention_scale(rope) == pytest.approx(scale)


def test_neighbouring_pairs_are_the_same_rotation_in_another_order() -> None:
    torch.manual_seed(0)
    angles = torch.randn(5, 4)
    x = torch.randn(5, 3, 10)  # Two of the ten dimensions are not rotated.
    halves = Rotation(angles.cos(), angles.sin(), interleaved=False).apply(x)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7, 8, 9])
    pairs = Rotation(angles.cos(), angles.sin(), interleaved=True).apply(x[..., order])
    assert torch.equal(pairs, halves[..., order])
    assert torch.equal(halves[..., 8:], x[..., 8:])
