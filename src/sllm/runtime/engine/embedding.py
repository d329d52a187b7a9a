"""Embeddings: a prompt's last hidden states, averaged, as a vector of length one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import PAGE_TOKENS, CacheMemory
from sllm_store.units import div_ceil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm.runtime.decoder import Decoder


def embed(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, pass_tokens: int
) -> list[list[float]]:
    """Return a vector for each prompt. Prompts share passes of up to so many tokens.

    They have a cache of their own, which is gone afterwards.
    """
    return [
        vector
        for group in _groups(prompts, pass_tokens)
        for vector in _embed(decoder, group, pass_tokens)
    ]


def _groups(prompts: Sequence[Sequence[int]], limit: int) -> Iterator[list[Sequence[int]]]:
    """Yield prompts in order, as many at a time as a pass has room for; at least one."""
    group: list[Sequence[int]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > limit:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _embed(
    decoder: Decoder, prompts: list[Sequence[int]], pass_tokens: int
) -> Iterator[list[float]]:
    tokens = sum(div_ceil(len(prompt), PAGE_TOKENS) * PAGE_TOKENS for prompt in prompts)
    memory = CacheMemory(
        decoder.config,
        tokens=tokens,
        sequences=len(prompts),
        dtype=decoder.dtype,
        device=decoder.device,
    )
    sequences = [memory.open() for _ in prompts]
    sums = [torch.zeros(decoder.config.hidden, device=decoder.device) for _ in prompts]
    for start in range(0, max(map(len, prompts)), pass_tokens):  # Once, but for a long prompt.
        parts = [prompt[start : start + pass_tokens] for prompt in prompts]
        pieces = [
            Piece(sequence=sequence, tokens=part, outputs=len(part))
            for sequence, part in zip(sequences, parts, strict=True)
        ]
        states = decoder.hidden(Batch.of(pieces, decoder.device), memory)
        for index, part in enumerate(states.split([len(part) for part in parts])):
            sums[index] += part.float().sum(0)
    for total in sums:
        yield torch.nn.functional.normalize(total, dim=0).tolist()
