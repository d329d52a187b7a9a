"""Tensors find their layer under every prefix that Hugging Face has given them."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.weights.resident import ResidentWeights
from sllm_store.errors import InvalidCheckpointError
from tests.sllm.runtime.tiny_models import TinyModel, make_model


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model("llama")


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
def test_every_prefix_is_known(model: TinyModel, prefix: str) -> None:
    tensors = {
        name.replace("model.", prefix, 1): tensor
        for name, tensor in model.theirs.state_dict().items()
    }
    unused = {"mtp.fc.weight": torch.zeros(1), "model.visual.patch.weight": torch.zeros(1)}
    source = ResidentWeights.of(model.config, {**tensors, **unused})
    assert source.ends.matrices.keys() == {"embed_tokens.weight", "lm_head.weight"}
    with source.layer(1) as weights:
        key = weights.matrices["self_attn.k_proj.weight"].dequantize(torch.float32)
    assert torch.equal(key, model.theirs.model.layers[1].self_attn.k_proj.weight)


def test_a_layer_too_many_and_a_name_too_often_are_refused(model: TinyModel) -> None:
    tensors = model.theirs.state_dict()
    name = "layers.2.mlp.up_proj.weight"
    with pytest.raises(InvalidCheckpointError, match="is of layer 2"):
        ResidentWeights.of(model.config, {**tensors, f"model.{name}": torch.zeros(1)})
    with pytest.raises(InvalidCheckpointError, match="there twice"):
        ResidentWeights.of(model.config, {**tensors, "norm.weight": torch.zeros(1)})
    with pytest.raises(InvalidCheckpointError, match=r"no use for the tensor score\.weight"):
        ResidentWeights.of(model.config, {**tensors, "score.weight": torch.zeros(1)})
