"""The checkpoints that are loaded: made on the device, written past the page cache, with checksums.

A checkpoint of B bytes takes B over the link and B over the disk's write rate: 16 GB at 2.5 GB/s
take 7 s. `many` and `few` are the same bytes in other tensors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checksums import checksums
from sllm_store import native
from sllm_store.convert.importer import import_checkpoint
from sllm_store.torch import load_dict

KINDS = (
    "llama-8b",
    "weights",
    "weights-4gb",
    "many",
    "few",
    "many-2gb",
    "few-2gb",
    "smollm2",
    "qwen-32b",
)
FILE_BYTES = 5 * 10**9
_STAGING_BYTES = 256 << 20
_WRITERS = 4
_ITEM_BYTES = 2

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Llama:
    """The sizes of a Llama model, as its configuration has them."""

    layers: int
    hidden: int
    ffn: int
    kv: int
    vocab: int
    heads: int = 32

    def shapes(self) -> Shapes:
        """Return its tensors."""
        hidden, ffn, kv = self.hidden, self.ffn, self.kv
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for i in range(self.layers):
            prefix = f"model.layers.{i}"
            shapes |= {
                f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
                f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
                f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
                f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
                f"{prefix}.mlp.gate_proj.weight": (ffn, hidden),
                f"{prefix}.mlp.up_proj.weight": (ffn, hidden),
                f"{prefix}.mlp.down_proj.weight": (hidden, ffn),
                f"{prefix}.input_layernorm.weight": (hidden,),
                f"{prefix}.post_attention_layernorm.weight": (hidden,),
            }
        return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab, hidden)}

    def config(self) -> dict[str, object]:
        """Return its config.json: what transformers needs to load it."""
        head_size = self.hidden // self.heads
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv // head_size,
            "vocab_size": self.vocab,
            "dtype": "bfloat16",
            "tie_word_embeddings": False,
        }


# As Qwen2.5-32B has them, but for its biases: 65 GB, what people split over GPUs.
QWEN_32B = Llama(layers=64, hidden=5120, ffn=27648, kv=1024, vocab=152064, heads=40)
LLAMA_8B = Llama(layers=32, hidden=4096, ffn=14336, kv=1024, vocab=128256)
LLAMA_4GB = Llama(layers=4, hidden=4096, ffn=14336, kv=1024, vocab=128256)
SMALL = Llama(layers=4, hidden=256, ffn=512, kv=64, vocab=1000)
MODELS = {
    "llama-8b": LLAMA_8B,
    "weights": LLAMA_8B,
    "weights-4gb": LLAMA_4GB,
    "qwen-32b": QWEN_32B,
}
LIKE_TRAINED = ("weights", "weights-4gb")


def shapes_of(kind: str, *, small: bool = False) -> Shapes:
    """Return the tensors of a synthetic checkpoint, by name."""
    if kind in MODELS:
        return (SMALL if small else MODELS[kind]).shapes()
    many, few, numbers = (2000, 30, 1000) if small else (20_000, 300, 100_000)
    if kind.endswith("-2gb"):
        kind, many, few = kind.removesuffix("-2gb"), many // 2, few // 2
    if kind == "many":
        return {f"layers.{i // 100}.t{i % 100}": (1, numbers) for i in range(many)}
    assert kind == "few", kind
    each, rest = divmod(many * numbers, few)
    return {f"layers.{i}": (1, each + (rest if i == 0 else 0)) for i in range(few)}


def make_checkpoint(
    directory: Path, kind: str, *, device: str, small: bool = False
) -> dict[str, int]:
    """Write a synthetic bf16 checkpoint as safetensors files; return its tensors' checksums.

    LIKE_TRAINED have numbers like a trained model's, the others have random bits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(kind, small=small)
    generator = torch.Generator(device=device).manual_seed(1)
    sums: dict[str, int] = {}
    is_trained = kind in LIKE_TRAINED
    files: dict[str, str] = {}
    for number, part in enumerate(_parts(shapes), 1):
        name = f"model-{number:05}.safetensors"
        tensors = _weights(part, generator) if is_trained else _bits(part, generator)
        sums |= checksums(tensors)
        write_safetensors(directory / name, tensors)
        files |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": _numbers(shapes) * _ITEM_BYTES}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind in MODELS:
        config = (SMALL if small else MODELS[kind]).config()
        (directory / "config.json").write_text(json.dumps(config))
    return sums


def make_smollm2(directory: Path, gguf: Path, *, device: str) -> dict[str, int]:
    """Write SmolLM2-135M-Instruct as bf16 safetensors; return its tensors' checksums."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".smollm2-") as scratch:
        imported = Path(scratch) / "imported"
        import_checkpoint(gguf, imported, dtype="bfloat16")
        loaded = load_dict(imported, "cpu", store="in-process")
        kept = {name: tensor for name, tensor in loaded.items() if name != "lm_head.weight"}
        shapes = {name: tuple(tensor.shape) for name, tensor in kept.items()}
        numbers = torch.empty(_numbers(shapes), dtype=torch.bfloat16, device=device)
        tensors = _cut(numbers, shapes)
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(directory / "model.safetensors", tensors)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            if (imported / name).is_file():
                shutil.copy(imported / name, directory / name)
    return checksums(tensors)


def make_compressed(directory: Path, source: Path) -> None:
    """Save a checkpoint compressed, as `sllm-store save --compress` does."""
    import_checkpoint(source, directory, compress=True, threads=os.cpu_count() or 1)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write bf16 tensors that follow one another in one storage, with direct writes."""
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
    first = next(iter(tensors.values()))
    content = torch.empty(0, dtype=torch.uint8, device=first.device).set_(
        first.untyped_storage(), 0, (offset,), (1,)
    )
    writer = native.FileWriter(str(path), threads=_WRITERS, direct=True)
    control = native.Control()
    writer.write([(0, head.data_ptr(), head.numel())], control)
    staging = torch.empty(
        min(_STAGING_BYTES, offset), dtype=torch.uint8, pin_memory=content.is_cuda
    )
    for start in range(0, offset, _STAGING_BYTES):
        piece = content[start : start + _STAGING_BYTES]
        staging[: piece.numel()].copy_(piece)
        writer.write([(head.numel() + start, staging.data_ptr(), piece.numel())], control)
    writer.finish(head.numel() + offset)


def _parts(shapes: Shapes) -> list[Shapes]:
    """Cut a checkpoint into files."""
    parts: list[Shapes] = [{}]
    size_bytes = 0
    for name, shape in shapes.items():
        if size_bytes > FILE_BYTES:
            parts.append({})
            size_bytes = 0
        parts[-1][name] = shape
        size_bytes += math.prod(shape) * _ITEM_BYTES
    return parts


def _numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _cut(numbers: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return one tensor after the other out of one."""
    pieces = torch.split(numbers, [math.prod(shape) for shape in shapes.values()])
    return {
        name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def _bits(shapes: Shapes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    bits = torch.randint(
        -(1 << 15),
        1 << 15,
        (_numbers(shapes),),
        generator=generator,
        device=generator.device,
        dtype=torch.int16,
    )
    return _cut(bits.view(torch.bfloat16), shapes)


def _weights(shapes: Shapes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return numbers like a trained model's.

    Matrices are normal with a scale of their own between 0.01 and 0.04, and rows whose scales
    differ; the weights of norms are near one half. Published bf16 models look like that, and it is
    what decides how well their exponents compress.
    """
    device = generator.device
    numbers = torch.empty(_numbers(shapes), dtype=torch.bfloat16, device=device)
    tensors = _cut(numbers, shapes)
    for tensor in tensors.values():
        normal = torch.randn(tensor.shape, generator=generator, device=device)
        if tensor.dim() == 1:
            tensor.copy_(normal * 0.05 + 0.5)
            continue
        scale = 0.02 * 2 ** (torch.rand(1, generator=generator, device=device) * 2 - 1)
        rows = torch.randn((tensor.shape[0], 1), generator=generator, device=device)
        tensor.copy_(normal * scale * (rows * 0.25).exp())
    return tensors
