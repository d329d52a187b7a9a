"""A GGUF as a Transformers model: configuration from its key-values, tensors from its blocks.

The blocks come as any load brings them, through a store or in this process, and are converted
where they lie: dequantised by the `gguf` package, rows put back into Hugging Face's order. 134
million Q4_1 weights take about a second on one core.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack
from transformers import AutoConfig, GenerationConfig

from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.tiers.transfer import open_files
from sllm_store.torch.dtypes import parse_float_dtype
from sllm_store.torch.views import Views
from sllm_store.transformers.description import Description

if TYPE_CHECKING:
    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.convert.gguf_tensors import Conversion

THREADS_MAX = 8
# What the conversion makes itself; from float32, the assignment makes any other dtype.
_TARGETS = {
    None: "auto",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def describe_gguf_model(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Description:
    """Describe a GGUF; dtype None keeps floats, and makes blocks float32, which is exact.

    Raises InvalidCheckpointError for an architecture that cannot be expressed, InvalidRequestError
    without the gguf package.
    """
    try:
        import gguf  # noqa: F401 - what makes floats of blocks

        from sllm_store.convert.gguf_import import describe_gguf
    except ImportError as error:
        raise InvalidRequestError(
            f"{checkpoint.path} is a GGUF: pip install 'serverless-llm[gguf]' to load it"
        ) from error
    wanted = _TARGETS.get(dtype, "float32")
    described = describe_gguf(checkpoint, open_files(checkpoint), dtype=wanted)
    config = AutoConfig.for_model(**described.config)
    generation: Any = GenerationConfig
    return Description(
        config=config,
        generation_config=generation.from_dict(described.generation_config),
        dtype=dtype or parse_float_dtype(config.dtype) or torch.float32,
        published=True,
        on_host=True,
        size_bytes=sum(conversion.output_bytes for conversion in described.conversions),
        view=partial(_convert, checkpoint, described.conversions),
    )


def _convert(checkpoint: Checkpoint, conversions: list[Conversion], loaded: Loaded) -> Views:
    """Return the model's tensors, with Hugging Face's names, on the host."""
    places = _Places(checkpoint, loaded)
    threads = min(THREADS_MAX, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="sllm-gguf") as executor:
        tensors = executor.map(partial(_make, places), conversions)
        names = [conversion.name for conversion in conversions]
        return Views(tensors=dict(zip(names, tensors, strict=True)), buffers={})


class _Places:
    """Finds bytes of a file in the arena of a host load."""

    def __init__(self, checkpoint: Checkpoint, loaded: Loaded) -> None:
        self._bytes = [arena if arena is None else from_dlpack(arena) for arena in loaded.arenas]
        self._starts: list[tuple[int, int]] = []
        self._places: list[tuple[int, int]] = []
        placed = {tensor.name: tensor for tensor in loaded.tensors}
        if placed.keys() != checkpoint.tensors.keys():
            raise InvalidCheckpointError(f"{checkpoint.path}: changed while it was loaded")
        found = sorted(
            (extent.file, extent.offset, placed[name].arena, placed[name].offset_bytes)
            for name, tensor in checkpoint.tensors.items()
            for extent in (checkpoint.extents[tensor.extent],)
        )
        for file, offset, arena, arena_offset in found:
            self._starts.append((file, offset))
            self._places.append((arena, arena_offset))

    def bytes_of(self, file: int, offset: int, size_bytes: int) -> torch.Tensor:
        """Return the bytes, without a copy."""
        index = bisect_right(self._starts, (file, offset)) - 1
        arena, arena_offset = self._places[index]
        memory = self._bytes[arena]
        assert memory is not None, "an empty arena holds no tensor with bytes"
        start = arena_offset + offset - self._starts[index][1]
        return memory[start : start + size_bytes]


def _make(places: _Places, conversion: Conversion) -> torch.Tensor:
    raw = [
        places.bytes_of(part.file, part.offset, part.size_bytes).numpy()
        for part in conversion.parts
    ]
    values = torch.from_numpy(conversion.convert(raw))
    return values.view(torch.bfloat16) if conversion.target == "bfloat16" else values
