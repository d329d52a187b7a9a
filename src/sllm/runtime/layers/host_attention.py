"""Attention of a decoding step on the CPU: natively, over the cache where it is.

PyTorch's would gather keys and values first, and wake its threads for a few microseconds of work,
which then spin on the processors that the next product needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm_store.products import WIDTHS, attend

if TYPE_CHECKING:
    from sllm.runtime.cache.memory import AttentionMemory
    from sllm_store.products import Memory


def can_attend(query: torch.Tensor, memory: AttentionMemory) -> bool:
    """Whether queries (tokens, heads, width) can attend natively: in float32, on the CPU."""
    return query.shape[-1] % WIDTHS == 0 and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in (query, memory.keys, memory.values)
    )


def attend_token(
    query: torch.Tensor, memory: AttentionMemory, places: torch.Tensor, out: torch.Tensor
) -> None:
    """Write one token's attention (1, heads, width) over all of some places."""
    _, heads, width = query.shape
    attend(
        _memory(query),
        (_memory(memory.keys), _memory(memory.values)),
        _memory(places),
        shape=(heads, memory.keys.shape[1], width),
        out=_memory(out),
        threads=torch.get_num_threads(),
    )


def _memory(tensor: torch.Tensor) -> Memory:
    return tensor.data_ptr(), tensor.nbytes
