"""What a checkpoint is in the words of Ollama's `show`: details, model info, template, license."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from sllm.library.model import Details
from sllm_store.errors import InvalidCheckpointError
from sllm_store.groups.description import describe_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.groups.description import DescribedTensor

GGUF = "gguf"
TEXT_BYTES_MAX = 16 << 20
_TEMPLATE_KEY = "tokenizer.chat_template"
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "USE_POLICY.md")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
# llama.cpp's general.file_type, where the name says more than the type of most tensors does.
_FILE_TYPES = {
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
}
# Hugging Face's names of what GGUF calls otherwise.
_CONFIG_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A checkpoint's description. `files` are those that hold weights."""

    details: Details
    info: Mapping[str, Any]
    files: tuple[Path, ...]
    size_bytes: int
    template: str | None
    license: str | None


def describe(path: Path) -> Described:
    """Return what a checkpoint directory or a GGUF is; raise the store's errors if it is none."""
    found = describe_checkpoint(path)
    parameters = _count_parameters(found.tensors)
    if found.format == GGUF:
        info = dict(found.metadata)
        template = info.pop(_TEMPLATE_KEY, None)
        own_license = info.get("general.license")
        quantization = _FILE_TYPES.get(_integer(info.get("general.file_type")), "")
    else:
        config = _read_json(path / "config.json") if path.is_dir() else {}
        info = _info_of(config)
        template = _read_template(path) if path.is_dir() else None
        own_license = _read_license(path) if path.is_dir() else None
        quantization = _affine(config)
    family = str(info.get("general.architecture") or "unknown")
    info = {**info, "general.architecture": family, "general.parameter_count": parameters}
    return Described(
        details=Details(
            format=found.format,
            family=family,
            families=(family,),
            parameter_size=parameters,
            quantization=quantization or _most_used(found.tensors),
        ),
        info={key: value for key, value in info.items() if _is_plain(value)},
        files=found.files,
        size_bytes=found.size_bytes,
        template=template if isinstance(template, str) else None,
        license=own_license if isinstance(own_license, str) else None,
    )


def list_tensors(path: Path) -> list[dict[str, Any]]:
    """Return the name, type and shape of each tensor of a checkpoint."""
    return [
        {"name": one.name, "type": _name_of(one.dtype), "shape": list(one.shape)}
        for one in describe_checkpoint(path).tensors
    ]


def _count_parameters(tensors: tuple[DescribedTensor, ...]) -> int:
    """Count weights; of MLX's affine ones, eight are packed into a word beside their scales."""
    names = {tensor.name for tensor in tensors}
    total = 0
    for tensor in tensors:
        stem, _, kind = tensor.name.rpartition(".")
        if f"{stem}.scales" in names:
            total += prod(tensor.shape) * 8 if kind == "weight" else 0
        else:
            total += prod(tensor.shape)
    return total


def _most_used(tensors: tuple[DescribedTensor, ...]) -> str:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += prod(tensor.shape) if len(tensor.shape) > 1 else 0
    if not counts:
        return "unknown"
    return _name_of(counts.most_common(1)[0][0])


def _name_of(dtype: str) -> str:
    return _DTYPES.get(dtype, dtype.removeprefix("gguf:").upper())


def _affine(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization") or config.get("quantization_config")
    if not isinstance(quantization, dict) or "group_size" not in quantization:
        return ""
    return f"affine Q{quantization.get('bits')} (group {quantization['group_size']})"


def _info_of(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else dict(config)
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        values.setdefault("rope_theta", rope["rope_theta"])
    family = config.get("model_type")
    if not isinstance(family, str):
        return {}
    found = {
        f"{family}.{key}": values[name]
        for name, key in _CONFIG_KEYS.items()
        if values.get(name) is not None
    }
    return {"general.architecture": family, **found}


def _read_template(directory: Path) -> str | None:
    text = _read_text(directory / "chat_template.jinja")
    if text is not None:
        return text
    template = _read_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_license(directory: Path) -> str | None:
    texts = (_read_text(directory / name) for name in _LICENSES)
    return next((text for text in texts if text), None)


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpointError(f"{path}: not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except OSError:
        return None  # Optional files; a checkpoint whose weights cannot be read was refused.
    if len(data) > TEXT_BYTES_MAX:
        raise InvalidCheckpointError(f"{path}: larger than {TEXT_BYTES_MAX} bytes")
    return data.decode("utf-8", errors="replace")


def _integer(value: object) -> int:
    return value if isinstance(value, int) else -1


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)
