"""CacheMemory: the tensors behind the books, allocated once.

Keys and values of an attention layer take 2 * kv_heads * head_dim elements a token, in pages that
all layers share the numbering of. A gated DeltaNet layer keeps, per sequence, a state of
value_heads * key_dim * value_dim float32 and the last inputs of its convolution.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from sllm.runtime.cache.sequence import PageBooks
from sllm.runtime.cache.states import SpareStates
from sllm.runtime.config.model import AttentionConfig, DeltaConfig
from sllm.runtime.config.rope import DynamicScaling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm.runtime.cache.sequence import CachedSequence
    from sllm.runtime.config.model import ModelConfig

PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class AttentionMemory:
    """Keys and values of one layer: (places, kv_heads, head_dim) each."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeltaMemory:
    """States of one gated DeltaNet layer, by slot.

    recurrent: (slots, value_heads, key_dim, value_dim) in float32; convolved: the last kernel - 1
    inputs of the convolution, (slots, channels, kernel - 1).
    """

    recurrent: torch.Tensor
    convolved: torch.Tensor

    def copy_state(self, source: int, target: int) -> None:
        """Copy what is in one slot to another."""
        self.recurrent[target] = self.recurrent[source]
        self.convolved[target] = self.convolved[source]


class CacheMemory:
    """The cache of one model: books, and each layer's memory."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        tokens: int,
        sequences: int,
        spares: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """Allocate room for `tokens` tokens in all, rounded up to pages, in `sequences` sequences.

        Each sequence may leave the rest of its last page unused. spares: copies of states, where
        layers have such.
        """
        pages = -(-tokens // PAGE_TOKENS)
        mixers = [layer.mixer for layer in config.layers]
        plain = all(isinstance(mixer, AttentionConfig) for mixer in mixers)
        slots = sequences + spares
        self.books = PageBooks(
            pages=pages,
            page_tokens=PAGE_TOKENS,
            slots=sequences,
            shares=not isinstance(config.rope.scaling, DynamicScaling),
            states=None if plain else SpareStates(range(sequences, slots)),
        )
        self.layers: list[AttentionMemory | DeltaMemory] = []
        for mixer in mixers:
            match mixer:
                case AttentionConfig() as attention:
                    shape = (pages * PAGE_TOKENS, attention.kv_heads, attention.head_dim)
                    keys, values = (_zeros(shape, dtype, device) for _ in range(2))
                    self.layers.append(AttentionMemory(keys, values))
                case DeltaConfig() as delta:
                    self.layers.append(_delta_memory(delta, slots, dtype, device))

    def open(self) -> CachedSequence:
        """Return an empty sequence; raise CacheFullError if there is no slot."""
        return self.books.open()

    @torch.inference_mode()
    def copy_states(self) -> None:
        """Make the copies of states that the books ask for; due before each pass."""
        if self.books.states is None:
            return
        layers = [layer for layer in self.layers if isinstance(layer, DeltaMemory)]
        for source, target in self.books.states.copies():
            for layer in layers:
                layer.copy_state(source, target)

    @contextmanager
    def keep_states(self, slots: Sequence[int]) -> Iterator[None]:
        """Put the states in some slots back as they were, once the context is closed."""
        layers = [layer for layer in self.layers if isinstance(layer, DeltaMemory)]
        kept = [(layer.recurrent[slots], layer.convolved[slots]) for layer in layers]
        yield
        for layer, (recurrent, convolved) in zip(layers, kept, strict=True):
            layer.recurrent[slots], layer.convolved[slots] = recurrent, convolved


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return what one more token of context takes in all layers."""
    mixers = (layer.mixer for layer in config.layers)
    elements = sum(
        2 * mixer.kv_heads * mixer.head_dim
        for mixer in mixers
        if isinstance(mixer, AttentionConfig)
    )
    return elements * dtype.itemsize


def bytes_per_sequence(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return what one more sequence takes in all layers, whatever its length."""
    total = 0
    for layer in config.layers:
        if isinstance(layer.mixer, DeltaConfig):
            mixer = layer.mixer
            total += mixer.value_heads * mixer.key_dim * mixer.value_dim * torch.float32.itemsize
            total += mixer.convolved_width * (mixer.kernel - 1) * dtype.itemsize
    return total


def _delta_memory(
    delta: DeltaConfig, sequences: int, dtype: torch.dtype, device: torch.device | None
) -> DeltaMemory:
    return DeltaMemory(
        recurrent=torch.zeros(
            (sequences, delta.value_heads, delta.key_dim, delta.value_dim), device=device
        ),
        convolved=torch.zeros(
            (sequences, delta.convolved_width, delta.kernel - 1), dtype=dtype, device=device
        ),
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    """Return zeros; on the host, of pages that are there only once something is written to them.

    PyTorch writes zeros, which takes seconds for a cache with room for long contexts.
    """
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = torch.from_numpy(np.zeros(prod(shape) * dtype.itemsize, dtype=np.uint8))
    return raw.view(dtype).view(shape)
