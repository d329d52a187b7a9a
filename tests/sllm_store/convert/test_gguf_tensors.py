"""Tiny models go to GGUF as llama.cpp would write them, and come back as they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.gguf_rope import llama3_factors
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, tuple[str, transformers.PretrainedConfig]] = {
    "llama": ("llama", transformers.LlamaConfig(**SIZES)),
    "llama-tied": ("llama", transformers.LlamaConfig(**SIZES | {"tie_word_embeddings": True})),
    "llama-biased": ("llama", transformers.LlamaConfig(**SIZES, attention_bias=True)),
    "mixtral": (
        "llama",
        transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    ),
    "qwen2": ("qwen2", transformers.Qwen2Config(**SIZES)),
    "qwen2-moe": (
        "qwen2moe",
        transformers.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=48),
    ),
    "qwen3": ("qwen3", transformers.Qwen3Config(**SIZES | {"head_dim": 32})),
    "qwen3-moe": ("qwen3moe", transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, norm_topk_prob=True)),
    "gpt2": (
        "gpt2",
        transformers.GPT2Config(vocab_size=101, n_embd=64, n_head=4, n_layer=2, n_positions=128),
    ),
}
BLOCK_KINDS = sorted(kind.name for kind in quants._type_traits if kind.name != "BF16")


def load(directory: Path, tensors: dict[str, torch.Tensor]) -> Any:
    config = transformers.AutoConfig.from_pretrained(directory)
    model_class = getattr(transformers, config.architectures[0])
    return model_class.from_pretrained(None, config=config, state_dict=tensors, dtype="auto").eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_gguf_bit_for_bit(name: str, workshop: Any) -> None:
    architecture, config = MODELS[name]
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(workshop.directory / "original")
    original = load_file(workshop.directory / "original/model.safetensors")
    written = json.loads((workshop.directory / "original/config.json").read_text())
    arrays = {key: value.numpy() for key, value in original.items()}
    workshop.from_model(arrays, written, architecture=architecture)

    import_checkpoint(workshop.gguf, workshop.imported)

    imported = workshop.read()
    assert {key: (shape, data) for key, (_, shape, data) in imported.items()} == {
        key: (value.shape, value.tobytes()) for key, value in arrays.items()
    }
    tensors = {
        key: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
        for key, (_, shape, data) in imported.items()
    }
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(load(workshop.imported, tensors)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind_name", BLOCK_KINDS)
def test_blocks_become_the_numbers_that_the_gguf_package_gives(
    kind_name: str, workshop: Any
) -> None:
    kind = GGMLQuantizationType[kind_name]
    blocks = workshop.random_blocks(kind, 16, 256)
    workshop.from_blocks(
        {"token_embd.weight": (blocks, kind), "blk.0.attn_q.weight": (blocks, kind)}
    )
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, kind)

    import_checkpoint(workshop.gguf, workshop.imported)

    found = workshop.read()
    assert found["model.embed_tokens.weight"] == ("float32", (16, 256), expected.tobytes())
    # Head 0 has rows 0 to 7: the first halves of the pairs, then the second ones.
    order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    query = found["model.layers.0.self_attn.q_proj.weight"]
    assert query == ("float32", (16, 256), expected[order].tobytes())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_blocks_and_floats_become_the_dtype_that_is_asked_for(dtype: str, workshop: Any) -> None:
    kind = GGMLQuantizationType.Q8_0
    blocks = workshop.random_blocks(kind, 16, 256)
    norm = np.linspace(-2, 2, 256, dtype=np.float32)
    workshop.from_blocks({"token_embd.weight": (blocks, kind), "output_norm.weight": (norm, None)})

    import_checkpoint(workshop.gguf, workshop.imported, dtype=dtype)

    found = workshop.read()
    exact = {
        "model.embed_tokens.weight": quants.dequantize(blocks, kind),
        "model.norm.weight": norm,
    }
    for name, values in exact.items():
        expected = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.int16)
        assert found[name] == (dtype, values.shape, expected.numpy().tobytes())
    assert json.loads((workshop.imported / "config.json").read_text())["dtype"] == dtype


def test_what_blocks_become_is_compressed_without_loss(workshop: Any, tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    blocks = workshop.random_blocks(kind, 256, 256)
    workshop.from_blocks({"token_embd.weight": (blocks, kind)})

    import_checkpoint(workshop.gguf, workshop.imported, dtype="bfloat16")
    import_checkpoint(workshop.gguf, tmp_path / "small", dtype="bfloat16", compress=True)

    assert open_checkpoint(tmp_path / "small").is_compressed
    assert workshop.read(tmp_path / "small") == workshop.read()


def test_auto_keeps_the_dtype_of_float_tensors(workshop: Any) -> None:
    half = np.ones((4, 8), np.float16)
    brain = np.full((8, 8), 0x3F80, np.uint16)
    workshop.from_blocks(
        {
            "token_embd.weight": (half, None),
            "blk.0.attn_v.weight": (brain.view(np.uint8), GGMLQuantizationType.BF16),
            "output_norm.weight": (np.ones(8, np.float32), None),
        }
    )

    import_checkpoint(workshop.gguf, workshop.imported)

    assert {name: entry[0] for name, entry in workshop.read().items()} == {
        "model.embed_tokens.weight": "float16",
        "model.layers.0.self_attn.v_proj.weight": "bfloat16",
        "model.norm.weight": "float32",
    }


def test_a_float64_tensor_stays_one(workshop: Any) -> None:
    values = np.linspace(0, 1, 32).reshape(4, 8)
    workshop.from_blocks({"token_embd.weight": (values, None)})
    report = import_checkpoint(workshop.gguf, workshop.imported)
    entry = ("float64", (4, 8), values.tobytes())
    assert workshop.read() == {"model.embed_tokens.weight": entry}
    assert report.size_bytes == values.nbytes


def test_rope_factors_go_into_the_configuration(workshop: Any) -> None:
    factors = np.array(llama3_factors(theta=10000.0, head_dim=128, factor=8.0), np.float32)
    tensors = {
        "token_embd.weight": (np.zeros((4, 256), np.float32), None),
        "rope_freqs.weight": (factors, None),
    }
    workshop.from_blocks(tensors)
    import_checkpoint(workshop.gguf, workshop.imported)
    assert list(workshop.read()) == ["model.embed_tokens.weight"]
    config = json.loads((workshop.imported / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "llama3"
    assert config["rope_parameters"]["factor"] == 8.0


def test_rope_factors_of_another_dtype_are_refused(workshop: Any) -> None:
    tensors = {
        "token_embd.weight": (np.zeros((4, 256), np.float32), None),
        "rope_freqs.weight": (np.ones(64, np.float16), None),
    }
    workshop.from_blocks(tensors)
    with pytest.raises(InvalidCheckpointError, match=r"rope_freqs\.weight is float16"):
        import_checkpoint(workshop.gguf, workshop.imported)


def test_a_tensor_without_elements_is_refused(workshop: Any) -> None:
    workshop.from_blocks({"token_embd.weight": (np.zeros((0, 8), np.float32), None)})
    with pytest.raises(InvalidCheckpointError, match="has no elements"):
        import_checkpoint(workshop.gguf, workshop.imported)


def test_a_tensor_that_the_model_lacks_is_refused_by_name(workshop: Any) -> None:
    workshop.from_blocks(
        {
            "token_embd.weight": (np.zeros((4, 8), np.float32), None),
            "blk.0.attn_sinks.weight": (np.zeros(8, np.float32), None),
        }
    )

    with pytest.raises(InvalidCheckpointError, match=r"model\.gguf.*'blk\.0\.attn_sinks\.weight'"):
        import_checkpoint(workshop.gguf, workshop.imported)

    assert not workshop.imported.exists()


def test_rows_that_heads_cannot_share_are_refused(workshop: Any) -> None:
    workshop.from_blocks(
        {
            "token_embd.weight": (np.zeros((4, 8), np.float32), None),
            "blk.0.attn_q.weight": (np.zeros((6, 8), np.float32), None),
        }
    )

    with pytest.raises(InvalidCheckpointError, match="6 rows"):
        import_checkpoint(workshop.gguf, workshop.imported)
