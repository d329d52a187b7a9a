"""For which heads one token's attention is compiled; a GPU's tests compute it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sllm.runtime.kernels.token_attention import AttentionShape

LLAMA_8B = AttentionShape(
    heads=32,
    kv_heads=8,
    head_dim=128,
    qk_norm=False,
    interleaved=False,
    dtype=torch.bfloat16,
    vectors=torch.float32,
)


def test_heads_of_published_models_fit() -> None:
    assert LLAMA_8B.fits
    assert replace(LLAMA_8B, heads=64).fits
    assert replace(LLAMA_8B, heads=14, kv_heads=2, head_dim=64).fits
    assert replace(LLAMA_8B, dtype=torch.float16).fits


@pytest.mark.parametrize(
    "shape",
    [
        replace(LLAMA_8B, head_dim=96),
        replace(LLAMA_8B, heads=33),
        replace(LLAMA_8B, heads=128),
        replace(LLAMA_8B, dtype=torch.float32),
        replace(LLAMA_8B, vectors=torch.float64),
    ],
)
def test_others_do_not(shape: AttentionShape) -> None:
    assert not shape.fits


def test_long_caches_are_for_launches_of_more_blocks() -> None:
    assert LLAMA_8B.suits(16384)
    assert not LLAMA_8B.suits(32768)
    assert not replace(LLAMA_8B, kv_heads=2, heads=16).suits(16384)


def test_few_heads_have_more_blocks_each() -> None:
    assert LLAMA_8B.cluster == 8
    assert replace(LLAMA_8B, kv_heads=2, heads=16).cluster == 16
