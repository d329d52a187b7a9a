"""Attention over pages is attention over the tokens in them."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.attention import Paged, attend_paged, attend_plain, count_chunks

PAGES, PAGE_TOKENS = 30, 16


def _paged(
    lengths: list[int], *, kv_heads: int, width: int, window: int | None, device: torch.device
) -> Paged:
    """Return memory with requests on pages in a random order."""
    generator = torch.Generator().manual_seed(0)
    shape = (PAGES * PAGE_TOKENS, kv_heads, width)
    keys, values = (torch.randn(shape, generator=generator).to(device) for _ in "kv")
    columns = PAGES // len(lengths)
    pages = torch.randperm(PAGES, generator=generator)[: columns * len(lengths)]
    return Paged(
        keys=keys,
        values=values,
        pages=pages.view(len(lengths), columns).int().to(device),
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        page_tokens=PAGE_TOKENS,
        window=window,
    )


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("shape", [(9, 3, 64), (2, 2, 16), (6, 1, 24)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_step_attends_to_its_request_s_tokens(
    shape: tuple[int, int, int], window: int | None, chunks: int, device: torch.device
) -> None:
    heads, kv_heads, width = shape
    paged = _paged([1, 130, 97], kv_heads=kv_heads, width=width, window=window, device=device)
    query = torch.randn(3, heads, width, device=device)
    found = attend_paged(query, paged, chunks)
    torch.testing.assert_close(found, attend_plain(query, paged), rtol=0, atol=2e-6)
    assert torch.equal(found, attend_paged(query, paged, chunks))


def test_what_is_behind_the_last_page_is_not_read(device: torch.device) -> None:
    paged = _paged([33, 70], kv_heads=2, width=16, window=None, device=device)
    query = torch.randn(2, 4, 16, device=device)
    expected = attend_paged(query, paged)
    used = torch.zeros(PAGES * PAGE_TOKENS, dtype=torch.bool, device=device)
    for pages, length in zip(paged.pages, paged.lengths.tolist(), strict=True):
        token = torch.arange(length, device=device)
        used[pages[token // PAGE_TOKENS] * PAGE_TOKENS + token % PAGE_TOKENS] = True
    paged.keys[~used], paged.values[~used] = torch.inf, torch.nan
    assert torch.equal(attend_paged(query, paged), expected)


def test_chunks_depend_on_the_room_and_not_on_lengths(device: torch.device) -> None:
    short, long = (
        _paged(lengths, kv_heads=2, width=16, window=None, device=device)
        for lengths in ([1, 1], [190, 190])
    )
    assert count_chunks(short) == count_chunks(long) >= 1
