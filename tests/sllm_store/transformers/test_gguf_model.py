"""A GGUF loads in place as the Transformers model it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from sllm_store import transformers as adapter
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

gguf = pytest.importorskip("gguf")
auto: Any = transformers.AutoModelForCausalLM
load_model: Any = adapter.load_model
HERE: dict[str, Any] = {"device_map": "cpu", "store": "in-process"}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of each head in llama.cpp's order."""
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def write_gguf(tmp_path: Path, publish: Callable[..., Any]) -> Callable[[str], Path]:
    """Return a function that writes the tiny Llama as a GGUF of one quantisation."""

    def write(kind: str) -> Path:
        path = tmp_path / f"tiny-{kind}.gguf"
        wanted = gguf.GGMLQuantizationType[kind]
        writer = gguf.GGUFWriter(path, "llama")
        _write_header(writer)
        state = publish("llama").from_pretrained(dtype=torch.float32).state_dict()
        for name, tensor in state.items():
            if name == "lm_head.weight":
                continue
            values = tensor.numpy()
            stem = name.removesuffix(".weight").removeprefix("model.")
            if stem.startswith("layers."):
                _, layer, part = stem.split(".", 2)
                if part in HEADS:
                    values = interleaved(values, HEADS[part])
                new = f"blk.{layer}.{NAMES[part]}.weight"
            else:
                new = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[stem]
            if values.ndim == 1:
                writer.add_tensor(new, values)
            else:
                writer.add_tensor(new, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _write_header(writer: Any) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(160)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{i}" for i in range(160)])
    writer.add_token_types([1] * 160)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def test_an_unquantised_gguf_is_the_model_itself(
    write_gguf: Callable[[str], Path], publish: Any, logits: Any
) -> None:
    model = load_model(write_gguf("F32"), **HERE)
    assert torch.equal(logits(model), logits(publish("llama").from_pretrained(dtype="float32")))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float64"])
def test_a_gguf_in_place_is_the_gguf_imported(
    write_gguf: Callable[[str], Path], tmp_path: Path, logits: Any, *, kind: str, dtype: str
) -> None:
    path = write_gguf(kind)
    import_checkpoint(path, tmp_path / "imported")
    ours = load_model(path, dtype=dtype, **HERE)
    imported = load_model(tmp_path / "imported", dtype=dtype, **HERE)
    assert ours.dtype == imported.dtype
    assert torch.equal(logits(ours), logits(imported))
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {ours.dtype}


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_a_gguf_loads_as_transformers_loads_it(
    write_gguf: Callable[[str], Path], kind: str, logits: Any
) -> None:
    path = write_gguf(kind)
    theirs = auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours = load_model(path, dtype="float32", **HERE)
    assert torch.equal(logits(ours), logits(theirs))


def test_a_gguf_loads_through_a_store_and_one_after_the_other(
    write_gguf: Callable[[str], Path], start_store: Callable[..., Any], logits: Any
) -> None:
    path = write_gguf("Q4_1")
    store = start_store(path.parent)
    expected = logits(load_model(path, **HERE))
    for parallel in (True, False):
        loaded = load_model(path.name, store=store.address, fully_parallel=parallel)
        assert torch.equal(logits(loaded.cpu()), expected)


def test_an_architecture_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "oddity")
    writer.add_tensor("token_embd.weight", torch.ones(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidCheckpointError, match="oddity"):
        load_model(path, **HERE)
