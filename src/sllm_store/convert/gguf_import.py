"""Plan the import of a GGUF: steps that make its tensors, and the texts of its small files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.writer import Source
from sllm_store.convert.floats import FLOATS
from sllm_store.convert.gguf_architecture import find_architecture
from sllm_store.convert.gguf_config import build_config, build_generation_config
from sllm_store.convert.gguf_metadata import GgufMetadata, without_long_lists
from sllm_store.convert.gguf_tensors import plan_conversions
from sllm_store.convert.gguf_tokenizer import build_tokenizer_files
from sllm_store.convert.small_files import CONFIG_FILE
from sllm_store.convert.steps import Made, Step
from sllm_store.errors import InvalidCheckpointError, ReadError
from sllm_store.native import NativeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.convert.gguf_tensors import Conversion
    from sllm_store.native import File

METADATA_FILE = "gguf_metadata.json"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufImport:
    """What a GGUF becomes: tensors by steps, and every small file's text by its name."""

    steps: list[Step]
    texts: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A GGUF's model in Hugging Face's terms: its configurations, and how to make its tensors."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    conversions: list[Conversion]


def describe_gguf(checkpoint: Checkpoint, files: Sequence[File], *, dtype: str) -> GgufModel:
    """Return what a GGUF's model is; `files` are the checkpoint's, for the rope factors."""
    metadata = GgufMetadata(path=checkpoint.path, values=checkpoint.metadata)
    architecture = find_architecture(metadata)
    conversions = plan_conversions(checkpoint, architecture, metadata, dtype=dtype)
    config = build_config(
        metadata,
        architecture,
        {name: tensor.shape for name, tensor in checkpoint.tensors.items()},
        dtype=_main_dtype(conversions),
        rope_factors=_rope_factors(checkpoint, files),
    )
    return GgufModel(
        config=config,
        generation_config=build_generation_config(metadata),
        conversions=conversions,
    )


def plan_gguf(checkpoint: Checkpoint, files: Sequence[File], *, dtype: str) -> GgufImport:
    """Plan everything that can fail on the file's contents before a byte is written."""
    model = describe_gguf(checkpoint, files, dtype=dtype)
    metadata = GgufMetadata(path=checkpoint.path, values=checkpoint.metadata)
    texts = {
        CONFIG_FILE: _dump(model.config),
        "generation_config.json": _dump(model.generation_config),
        METADATA_FILE: _dump(without_long_lists(checkpoint.metadata)),
        **build_tokenizer_files(metadata),
    }
    steps = [
        Step(
            size_bytes=conversion.output_bytes,
            make=partial(_make, conversion, files),
        )
        for conversion in model.conversions
    ]
    return GgufImport(steps=steps, texts=texts)


def _make(conversion: Conversion, files: Sequence[File]) -> Made:
    values = conversion.convert(read_parts(conversion, files))
    source = Source(
        name=conversion.name,
        dtype=conversion.target,
        shape=conversion.shape,
        stride=contiguous_stride(conversion.shape),
        storage_offset=0,
        storage=conversion.name,
        address=values.ctypes.data,
        size_bytes=values.nbytes,
    )
    return Made(sources=(source,), memory=values)


def read_parts(conversion: Conversion, files: Sequence[File]) -> list[NDArray[np.uint8]]:
    """Return the bytes of which a tensor is made. Raises ReadError."""
    return [_read(files[part.file], part.offset, part.size_bytes) for part in conversion.parts]


def _read(file: File, offset: int, size_bytes: int) -> NDArray[np.uint8]:
    raw = np.empty(size_bytes, dtype=np.uint8)
    try:
        file.read_into(offset, raw.ctypes.data, size_bytes)
    except NativeError as error:
        raise ReadError(f"reading {file.path} failed: {error.strerror}") from error
    return raw


def _rope_factors(checkpoint: Checkpoint, files: Sequence[File]) -> list[float] | None:
    tensor = checkpoint.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.dtype != "float32":
        raise InvalidCheckpointError(
            f"{checkpoint.path}: the tensor {ROPE_FACTORS} is {tensor.dtype}, expected float32"
        )
    extent = checkpoint.extents[tensor.extent]
    raw = _read(files[extent.file], extent.offset, extent.size_bytes)
    return [float(value) for value in raw.view(np.float32)]


def _main_dtype(conversions: Sequence[Conversion]) -> str:
    """Return the float dtype that most bytes have."""
    sizes: Counter[str] = Counter({"float32": 0})
    for conversion in conversions:
        if conversion.target in FLOATS:
            sizes[conversion.target] += conversion.output_bytes
    return sizes.most_common(1)[0][0]


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=list) + "\n"
