"""Small checkpoints on disk, as publishers publish them, and a wheel that has one."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from typing import TYPE_CHECKING

import gguf
import numpy as np
from safetensors.numpy import save_file

from sllm.library.smollm2 import PackagedModel

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
}


def make_directory(directory: Path, *, value: float = 0.5) -> Path:
    """Write a safetensors directory of 40 parameters."""
    directory.mkdir(parents=True)
    tensors = {
        "model.embed_tokens.weight": np.full((4, 8), value, np.float16),
        "model.norm.weight": np.ones(8, np.float16),
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (directory / "LICENSE").write_text("do as you like")
    return directory


def make_gguf(path: Path, *, seed: int = 0) -> Path:
    """Write a GGUF with one Q8_0 matrix and a norm: 2,080 parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_chat_template(TEMPLATE)
    writer.add_license("mit")
    values = np.random.default_rng(seed).standard_normal((32, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_computable_gguf(path: Path) -> Path:
    """Write a GGUF of one layer that can be computed with: 30,912 parameters."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_chat_template(TEMPLATE)
    writer.add_license("mit")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*map(chr, range(65, 95)), "AB", "a"])
    writer.add_token_types([1] * 32)
    writer.add_token_merges(["A B"])
    kind = gguf.GGMLQuantizationType.Q8_0
    random = np.random.default_rng(0)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    matrices = {"token_embd.weight": 32} | {f"blk.0.{name}.weight": 64 for name in names}
    for name, rows in matrices.items():
        values = random.standard_normal((rows, 64)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_wheel(directory: Path, model: Path) -> PackagedModel:
    """Write a wheel that pip accepts, with a model in it."""
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / "tiny_model-1.0-py3-none-any.whl"
    member = f"tiny_model/{model.name}"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, member)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return PackagedModel(
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        size_bytes=model.stat().st_size,
        sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
    )


def truncated_safetensors() -> bytes:
    """Return the beginning of a file whose header promises more."""
    return struct.pack("<Q", 1000) + b"{}"
