"""The cache takes the bytes that planning is told it takes."""

from __future__ import annotations

from pathlib import Path

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
    memory = CacheMemory(config, tokens=PAGE_TOKENS * 3 - 1, sequences=3, spares=2, dtype=dtype)
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
    assert memory.books.slots_free == 3


def test_room_on_the_host_takes_no_memory_before_it_is_used() -> None:
    config = parse_config(CONFIGS["llama"]().to_dict())
    before = _resident_bytes()
    memory = CacheMemory(config, tokens=2_000_000, sequences=1)
    first = memory.layers[0]
    assert isinstance(first, AttentionMemory)
    assert first.keys.dtype == torch.float32
    assert not first.keys[::100_000].any()
    assert sum(2 * layer.keys.nbytes for layer in memory.layers if hasattr(layer, "keys")) > 1 << 29
    assert _resident_bytes() - before < 1 << 27


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
