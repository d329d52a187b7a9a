"""The cache takes the bytes that planning is told it takes."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.cache.memory import (
    PAGE_TOKENS,
    AttentionMemory,
    CacheMemory,
    bytes_per_sequence,
    bytes_per_token,
)
from sllm.runtime.config.families import parse_config
from tests.sllm.runtime.tiny_models import CONFIGS


@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_bytes_are_allocated_bytes(name: str, dtype: torch.dtype) -> None:
    config = parse_config(CONFIGS[name]().to_dict())
    memory = CacheMemory(config, tokens=PAGE_TOKENS * 3 - 1, sequences=5, dtype=dtype)
    allocated = 0
    for layer in memory.layers:
        if isinstance(layer, AttentionMemory):
            allocated += layer.keys.nbytes + layer.values.nbytes
        else:
            allocated += layer.recurrent.nbytes + layer.convolved.nbytes
    tokens = PAGE_TOKENS * 3
    expected = bytes_per_token(config, dtype) * tokens + bytes_per_sequence(config, dtype) * 5
    assert allocated == expected
    assert memory.books.pages_free == 3
    assert memory.books.slots_free == 5
