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
        **(_hybrid_settings(config) if "linear_num_key_heads" in config else {}),
    }
    return {key: value for key, value in pairs.items() if value is not None}


def _hybrid_settings(config: Mapping[str, Any]) -> dict[str, int]:
    """Return what Qwen3-Next and Qwen3.5-MoE have besides."""
    values = config["linear_num_value_heads"]
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": values,
        "ssm.inner_size": values * config["linear_value_head_dim"],
        "full_attention_interval": 4,
        "rope.dimension_count": config["head_dim"] // 4,
    }


def _to_gguf(
    tensors: Mapping[str, NDArray[Any]], architecture: str, config: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Rename, stack, permute and transpose the tensors of a Hugging Face checkpoint."""
    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(number, config.get("num_hidden_layers") or config["n_layer"])
    experts: dict[str, dict[int, NDArray[Any]]] = {}
    found: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if "linear_num_key_heads" in config:
            special = _hybrid(name, values, architecture, config)
            if special is not None:
                found |= special
                continue
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


def _hybrid(
    name: str, values: NDArray[Any], architecture: str, config: Mapping[str, Any]
) -> dict[str, NDArray[Any]] | None:
    """Return what llama.cpp's converter makes of one tensor of Qwen3-Next or Qwen3.5-MoE.

    None where that is what it makes of every model's. (conversion/qwen.py, Qwen3NextModel and
    _LinearAttentionVReorderBase; the names are gguf's tensor_mapping.py's.)
    """
    matched = re.fullmatch(r"model\.layers\.(\d+)\.(?:linear_attn\.)?(.+)", name)
    layer, rest = matched.groups() if matched else ("", name)
    if rest.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        ends = {"model.norm.weight": "output_norm.weight"}
        inner = {
            "input_layernorm.weight": "attn_norm",
            "post_attention_layernorm.weight": "post_attention_norm",
            "self_attn.q_norm.weight": "attn_q_norm",
            "self_attn.k_norm.weight": "attn_k_norm",
        }
        renamed = ends.get(name) or f"blk.{layer}.{inner[rest]}.weight"
        return {renamed: values + np.float32(1)}
    if "linear_attn." not in name:
        return None
    keys, dim = config["linear_num_key_heads"], config["linear_value_head_dim"]
    each = config["linear_num_value_heads"] // keys
    width = keys * config["linear_key_head_dim"]
    if rest == "in_proj_qkvz.weight":
        heads = values.reshape(keys, -1, values.shape[1])
        size = config["linear_key_head_dim"]
        cuts = np.split(heads, [size, 2 * size, 2 * size + each * dim], axis=1)
        q, k, v, z = (part.reshape(-1, values.shape[1]) for part in cuts)
        mixed = np.concatenate((q, k, v))
        return {f"blk.{layer}.attn_qkv.weight": mixed, f"blk.{layer}.attn_gate.weight": z}
    values = -np.exp(values) if rest == "A_log" else values.squeeze()
    if architecture == "qwen35moe" and rest != "norm.weight":
        values = _tiled(rest, values, (keys, each, dim, width))
    names = {
        "A_log": "ssm_a",
        "dt_bias": "ssm_dt.bias",
        "conv1d.weight": "ssm_conv1d.weight",
        "norm.weight": "ssm_norm.weight",
        "out_proj.weight": "ssm_out.weight",
        "in_proj_ba.weight": "ssm_ba.weight",
        "in_proj_qkv.weight": "attn_qkv.weight",
        "in_proj_z.weight": "attn_gate.weight",
        "in_proj_a.weight": "ssm_alpha.weight",
        "in_proj_b.weight": "ssm_beta.weight",
    }
    return {f"blk.{layer}.{names[rest]}": np.ascontiguousarray(values)}


def _tiled(name: str, values: NDArray[Any], sizes: tuple[int, int, int, int]) -> NDArray[Any]:
    """Return a tensor with its value heads as ggml broadcasts: one of each key head, and again."""
    keys, each, dim, width = sizes
    order = [key * each + one for one in range(each) for key in range(keys)]
    rows = [head * dim + row for head in order for row in range(dim)]
    if name in {"in_proj_qkv.weight", "conv1d.weight"}:
        return np.concatenate((values[: 2 * width], values[2 * width :][rows]))
    if name == "in_proj_z.weight":
        return values[rows]
    return values[:, rows] if name == "out_proj.weight" else values[order]


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
        kind: Any = None,
    ) -> dict[str, NDArray[Any]]:
        """Write the GGUF of a Hugging Face model; return what it holds, by GGUF name.

        kind: of the blocks that matrices become, if they are to.
        """
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
            if kind is None or values.ndim == 1 or values.shape[-1] % 32:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
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
