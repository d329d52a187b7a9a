"""A layer's tensors must be the model's: all of them, of the right shapes, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.config.families import parse_config
from sllm.runtime.weights.assembly import assemble_ends, assemble_layer
from sllm.runtime.weights.expected import end_shapes, layer_shapes
from sllm_store.errors import InvalidCheckpointError
from tests.sllm.runtime.tiny_models import CONFIGS

if TYPE_CHECKING:
    from sllm.runtime.config.model import ModelConfig


def _config(name: str) -> ModelConfig:
    return parse_config(CONFIGS[name]().to_dict())


def _layer(config: ModelConfig) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in layer_shapes(config, 0).items()}


@pytest.mark.parametrize("name", ["llama", "llama-biases", "qwen3-moe", "qwen3-next"])
def test_a_missing_tensor_is_named(name: str) -> None:
    config = _config(name)
    for missing in _layer(config):
        tensors = _layer(config)
        del tensors[missing]
        with pytest.raises(InvalidCheckpointError, match=f"layer 0: the tensor {missing} is miss"):
            assemble_layer(config, 0, tensors)


def test_a_tensor_that_the_model_has_no_use_for_is_named() -> None:
    config = _config("llama")
    tensors = {**_layer(config), "self_attn.q_proj.bias": torch.zeros(64)}
    with pytest.raises(InvalidCheckpointError, match=r"no use for the tensor self_attn\.q_proj"):
        assemble_layer(config, 0, tensors)


def test_a_tensor_of_another_shape_is_named() -> None:
    config = _config("llama")
    tensors = {**_layer(config), "mlp.up_proj.weight": torch.zeros(32, 48)}
    with pytest.raises(InvalidCheckpointError, match=r"shape \(32, 48\), not \(48, 32\)"):
        assemble_layer(config, 0, tensors)


def test_experts_may_come_one_by_one_or_all_in_one_tensor() -> None:
    config = _config("qwen3-moe")
    single = _layer(config)
    numbers = range(6)

    def joined(name: str) -> torch.Tensor:
        return torch.stack([single[f"mlp.experts.{n}.{name}.weight"] for n in numbers])

    others = {name: tensor for name, tensor in single.items() if ".experts." not in name}
    halves = torch.cat((joined("gate_proj"), joined("up_proj")), dim=1)
    down = {"mlp.experts.down_proj": joined("down_proj")}
    for fused in (
        {"mlp.experts.gate_up_proj": halves, **down},
        {
            "mlp.experts.gate_proj": joined("gate_proj"),
            "mlp.experts.up_proj": joined("up_proj"),
            **down,
        },
    ):
        experts = assemble_layer(config, 0, {**others, **fused}).experts
        assert experts is not None
        with experts.lease([1, 4]) as leased:
            for number in (1, 4):
                for name in ("gate", "up", "down"):
                    matrix = getattr(leased[number], name).dequantize(torch.float32)
                    assert torch.equal(matrix, single[f"mlp.experts.{number}.{name}_proj.weight"])
    with pytest.raises(InvalidCheckpointError, match="rows, which 6 experts cannot share"):
        assemble_layer(config, 0, {**others, "mlp.experts.gate_up_proj": halves[:5, :1]})


def test_a_tied_model_leaves_a_stored_head_out() -> None:
    for name, has_head in (("llama", True), ("llama-tied", False)):
        config = _config(name)
        tensors = {n: torch.zeros(shape) for n, shape in end_shapes(config).items()}
        ends = assemble_ends(config, {**tensors, "lm_head.weight": torch.zeros(96, 32)})
        assert ("lm_head.weight" in ends.matrices) is has_head
