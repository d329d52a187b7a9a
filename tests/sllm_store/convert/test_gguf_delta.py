"""Tiny hybrids go to GGUF as llama.cpp would write them, and come back as they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf import GGUFWriter

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
}
MODELS: dict[str, transformers.PretrainedConfig] = {
    "qwen3next": transformers.Qwen3NextConfig(**SIZES),
    "qwen35moe": transformers.Qwen3_5MoeTextConfig(**SIZES),
}
CHANGED = ("norm.weight", "A_log")
IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture(params=MODELS)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(workshop: Any, architecture: str) -> Callable[..., Any]:
    """Write a model of random weights as safetensors and as GGUF; return it."""

    def write(extra: Callable[[GGUFWriter], None] = lambda writer: None) -> Any:
        torch.manual_seed(0)
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_config(MODELS[architecture]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        model.save_pretrained(workshop.directory / "original")
        tensors = load_file(workshop.directory / "original/model.safetensors")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        config = json.loads((workshop.directory / "original/config.json").read_text())

        def add(writer: GGUFWriter) -> None:
            if architecture == "qwen35moe":  # Its files have sections for places in images.
                writer.add_rope_dimension_sections([1, 1, 0, 0])
            extra(writer)

        workshop.from_model(arrays, config, architecture=architecture, extra=add)
        return model

    return write


def test_a_hybrid_comes_back_from_gguf_and_computes_the_same(
    write: Callable[..., Any], workshop: Any
) -> None:
    model = write()
    import_checkpoint(workshop.gguf, workshop.imported)
    original = load_file(workshop.directory / "original/model.safetensors")
    tensors = {
        name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
        for name, (_, shape, data) in workshop.read().items()
    }
    assert tensors.keys() == original.keys()
    for name, tensor in tensors.items():
        if name.endswith(CHANGED):
            torch.testing.assert_close(tensor, original[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, original[name]), name
    config = transformers.AutoConfig.from_pretrained(workshop.imported)
    loaded = type(model).from_pretrained(None, config=config, state_dict=tensors).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_layers_that_only_guess_are_left_out(write: Callable[..., Any], workshop: Any) -> None:
    def guess(writer: GGUFWriter) -> None:
        name = writer.arch
        del writer.kv_data[0][f"{name}.block_count"]
        writer.add_uint32(f"{name}.block_count", 5)
        writer.add_uint32(f"{name}.nextn_predict_layers", 1)
        extra = torch.ones(64).numpy()
        writer.add_tensor("blk.4.nextn.enorm.weight", extra)
        writer.add_tensor("blk.4.attn_norm.weight", extra)

    write(guess)
    import_checkpoint(workshop.gguf, workshop.imported)
    original = load_file(workshop.directory / "original/model.safetensors")
    assert workshop.read().keys() == original.keys()
    assert json.loads((workshop.imported / "config.json").read_text())["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("ssm.time_step_rank", 5), "cannot be"),
        (("ssm.group_count", 3), "was expected"),
        (("nextn_predict_layers", 7), "cannot be for guesses"),
    ],
)
def test_heads_and_layers_that_cannot_be_are_refused(
    write: Callable[..., Any], workshop: Any, wrong: tuple[str, int], said: str
) -> None:
    key, value = wrong

    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(f"{writer.arch}.{key}", None)
        writer.add_uint32(f"{writer.arch}.{key}", value)

    write(change)
    with pytest.raises(InvalidCheckpointError, match=said):
        import_checkpoint(workshop.gguf, workshop.imported)
    assert not workshop.imported.exists()
