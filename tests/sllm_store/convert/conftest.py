"""GGUF files made here: from tiny models as llama.cpp's converter would, and from bare tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map, quants

from sllm_store.checkpoint.reader import open_checkpoint
from tests.checkpoint_memory import read_raw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

TOKENS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
MERGES = ["h e", "l l", "he ll", "hell o"]
TOKENS += [merge.replace(" ", "") for merge in MERGES]


def add_tokenizer(writer: GGUFWriter) -> None:
    """Give a GGUF a vocabulary of printable ASCII and the word 'hello'."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Permute as llama.cpp's converter does (conversion/llama.py, LlamaModel.permute)."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def _settings(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Return a GGUF's hyperparameters for a config.json."""
    gpt2 = config["model_type"] == "gpt2"
    pairs = {
        "block_count": config.get("n_layer") or config.get("num_hidden_layers"),
        "embedding_length": config.get("n_embd") or config.get("hidden_size"),
        "context_length": config.get("n_positions") or config.get("max_position_embeddings"),
        "feed_forward_length": config.get("intermediate_size") or 4 * config.get("n_embd", 0),
        "attention.head_count": config.get("n_head") or config.get("num_attention_heads"),
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
        "attention.layer_norm_rms_epsilon": None if gpt2 else config["rms_norm_eps"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"] if gpt2 else None,
        "rope.freq_base": None if gpt2 else config["rope_parameters"]["rope_theta"],
        "expert_count": config.get("num_experts") or config.get("num_local_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
    }
    return {key: value for key, value in pairs.items() if value is not None}


def _to_gguf(
    tensors: Mapping[str, NDArray[Any]], architecture: str, config: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Rename, stack, permute and transpose the tensors of a Hugging Face checkpoint."""
    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(number, config.get("num_hidden_layers") or config["n_layer"])
    experts: dict[str, dict[int, NDArray[Any]]] = {}
    found: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        matched = re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+)", stem)
        renamed = names.get_name(f"{matched[1]}.{matched[3]}" if matched else stem)
        assert renamed, name
        if matched:
            experts.setdefault(f"{renamed}.{kind}", {})[int(matched[2])] = values
        else:
            found[f"{renamed}.{kind}"] = _rearranged(name, values, architecture, config)
    for name, parts in experts.items():
        found[name] = np.stack([parts[index] for index in range(len(parts))])
    return found


def _rearranged(
    name: str, values: NDArray[Any], architecture: str, config: Mapping[str, Any]
) -> NDArray[Any]:
    if architecture == "llama" and "q_proj" in name:
        values = interleave(values, config["num_attention_heads"])
    if architecture == "llama" and "k_proj" in name:
        values = interleave(values, config["num_key_value_heads"])
    if architecture == "gpt2" and re.search(r"\.(c_attn|c_proj|c_fc)\.weight", name):
        values = values.T
    if name.endswith("shared_expert_gate.weight"):
        values = values.reshape(-1)
    return np.ascontiguousarray(values)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Workshop:
    """Makes GGUF files in a directory, and reads checkpoints of ours back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.gguf = directory / "model.gguf"
        self.imported = directory / "imported"

    def from_model(
        self,
        tensors: Mapping[str, NDArray[Any]],
        config: Mapping[str, Any],
        *,
        architecture: str,
        extra: Callable[[GGUFWriter], None] = lambda writer: None,
    ) -> dict[str, NDArray[Any]]:
        """Write the GGUF of a Hugging Face model; return what it holds, by GGUF name."""
        writer = GGUFWriter(self.gguf, architecture)
        for key, value in _settings(config).items():
            if isinstance(value, float):
                writer.add_float32(f"{architecture}.{key}", value)
            else:
                writer.add_uint32(f"{architecture}.{key}", value)
        add_tokenizer(writer)
        extra(writer)
        renamed = _to_gguf(tensors, architecture, config)
        for name, values in renamed.items():
            writer.add_tensor(name, values)
        _finish(writer)
        return renamed

    def from_blocks(
        self, tensors: Mapping[str, tuple[NDArray[Any], Any]], *, heads: int = 2
    ) -> None:
        """Write the GGUF of a minimal Llama whose tensors have the given bytes and types."""
        writer = GGUFWriter(self.gguf, "llama")
        for key in ("block_count", "context_length", "feed_forward_length", "embedding_length"):
            writer.add_uint32(f"llama.{key}", 256)
        writer.add_uint32("llama.attention.head_count", heads)
        writer.add_uint32("llama.attention.head_count_kv", heads)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        add_tokenizer(writer)
        for name, (values, kind) in tensors.items():
            writer.add_tensor(name, values, raw_dtype=kind)
        _finish(writer)

    def random_blocks(self, kind: Any, rows: int, columns: int) -> NDArray[np.uint8]:
        """Make blocks of any type: quantised numbers where gguf can, random bytes elsewhere."""
        random = np.random.default_rng(7)
        try:
            values = random.standard_normal((rows, columns), dtype=np.float32)
            return quants.quantize(values, kind).view(np.uint8)
        except NotImplementedError:
            shape = quants.quant_shape_to_byte_shape((rows, columns), kind)
            return random.integers(0, 256, shape, dtype=np.uint8)

    def read(self, path: Path | None = None) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """Read a checkpoint of ours: (dtype, shape, bytes) by name."""
        checkpoint = open_checkpoint(path or self.imported)
        found = {}
        for name, tensor in checkpoint.all_tensors().items():
            extent = checkpoint.extents[tensor.extent]
            content = checkpoint.files[extent.file].path.read_bytes()
            found[name] = (tensor.dtype, tensor.shape, read_raw(content, extent))
        return found


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
