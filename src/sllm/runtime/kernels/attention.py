"""Attention of decoding steps on the GPU, over the cache's pages: each key and value read once.

Bound by 2 * kv_heads * head_dim * bytes * tokens in the cache over the memory's bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.paged_attention import attend_chunks, join_chunks
from sllm.runtime.kernels.fixed_columns import GROUP, room_beside, room_of
from sllm.runtime.kernels.launches import processors_of
from sllm.runtime.kernels.shares import power_of_two

_TOKENS_AT_ONCE = 64
_ROW_BYTES = 512  # Of as many keys as that; of wider ones fewer, or they are not held on chip.
_FEWEST = 16  # Rows and columns of a product on the matrix units.
_MOST_CHUNKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """Keys and values of one layer, and whose they are.

    keys, values: (places, kv_heads, head_dim), as `AttentionMemory` has them. pages: (requests,
    most pages), int32, the pages of each request in order; what is behind its last one is not read.
    lengths: (requests,), int32, the tokens of each, at least one.
    """

    keys: torch.Tensor
    values: torch.Tensor
    pages: torch.Tensor
    lengths: torch.Tensor
    page_tokens: int
    window: int | None = None


def count_chunks(paged: Paged) -> int:
    """Return into how many chunks a sequence is cut: enough programs for the device.

    It depends on the room for pages, not on lengths, so that a captured graph stays right.
    """
    requests, columns = paged.pages.shape
    room = columns * paged.page_tokens
    useful = -(-room // _TOKENS_AT_ONCE)
    programs = requests * paged.keys.shape[1]
    wanted = -(-2 * processors_of(paged.keys.device) // programs)
    return max(min(wanted, useful, _MOST_CHUNKS), 1)


def attend_paged(
    query: torch.Tensor, paged: Paged, chunks: int | None = None, *, fixes: bool = False
) -> torch.Tensor:
    """Return softmax(query keys / sqrt(head_dim)) values: (requests, heads * head_dim).

    query: (requests, heads, head_dim). fixes: for a product with nibbles.
    """
    requests, heads, width = query.shape
    kv_heads = paged.keys.shape[1]
    sharing = heads // kv_heads
    chunks = chunks or count_chunks(paged)
    shape = (requests, heads, chunks)
    sums = torch.empty((*shape, width), dtype=torch.float32, device=query.device)
    maxima = torch.empty(shape, dtype=torch.float32, device=query.device)
    totals = torch.empty_like(maxima)
    block_width = _block_width(width)
    attend_chunks[(requests, kv_heads, chunks)](
        sums,
        maxima,
        totals,
        query.contiguous(),
        paged.keys,
        paged.values,
        paged.pages,
        paged.lengths,
        math.log2(math.e) / math.sqrt(width),
        paged.pages.shape[1],
        chunks,
        kv_heads,
        paged.window or 0,
        sharing=sharing,
        width=width,
        block_width=block_width,
        block_heads=max(power_of_two(sharing), _FEWEST),
        block_tokens=_tokens_at_once(query),
        page_tokens=paged.page_tokens,
        precision="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4,
        enable_fp_fusion=True,
        **chain_options(),
    )
    return _join(query, (sums, maxima, totals), fixes=fixes and width == block_width >= GROUP)


def _join(
    query: torch.Tensor, parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], *, fixes: bool
) -> torch.Tensor:
    """Return what chunks come to: their sums, maxima and totals, as `attend_chunks` writes them."""
    requests, heads, width = query.shape
    chunks = parts[0].shape[2]
    out = query.new_empty((requests, heads * width))
    records = room_beside(out) if fixes else None
    room = room_of(records)
    join_chunks[(requests, max(heads, -(-room * GROUP // width)))](
        out,
        records,
        *parts,
        chunks,
        heads,
        room,
        width=width,
        block_width=_block_width(width),
        block_chunks=power_of_two(chunks),
        num_warps=4,
        enable_fp_fusion=True,
        **chain_options(),
    )
    return out


def _block_width(width: int) -> int:
    return max(power_of_two(width), _FEWEST)


def _tokens_at_once(query: torch.Tensor) -> int:
    wide = query.shape[-1] * query.element_size() > _ROW_BYTES
    return _TOKENS_AT_ONCE // 2 if wide else _TOKENS_AT_ONCE


def attend_plain(query: torch.Tensor, paged: Paged) -> torch.Tensor:
    """Return the same as `attend_paged` by PyTorch's operations, request by request."""
    out = torch.empty_like(query)
    for request, length in enumerate(paged.lengths.tolist()):
        first = 0 if paged.window is None else max(length - paged.window, 0)
        token = torch.arange(first, length, device=query.device)
        pages = paged.pages[request].index_select(0, token // paged.page_tokens)
        places = pages * paged.page_tokens + token % paged.page_tokens
        keys, values = (memory.index_select(0, places) for memory in (paged.keys, paged.values))
        out[request] = functional.scaled_dot_product_attention(
            query[request].unsqueeze(1),
            keys.to(query.dtype).transpose(0, 1),
            values.to(query.dtype).transpose(0, 1),
            enable_gqa=query.shape[1] != keys.shape[1],
        ).squeeze(1)
    return out.flatten(-2)
