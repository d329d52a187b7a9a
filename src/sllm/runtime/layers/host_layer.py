"""HostLayer: a layer of attention and a gated MLP, computed natively on the CPU.

A layer is some thirty small operations around seven products. To ask PyTorch for one takes as long
as a small model's product, so here native code has all of them but the attention of long spans,
which PyTorch's blockwise one is better at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.cache.memory import AttentionMemory
from sllm.runtime.config.model import AttentionConfig, MlpConfig
from sllm.runtime.layers.attention import Attention
from sllm.runtime.quant.affine import AffineQ4
from sllm.runtime.quant.block_matrix import BlockMatrix
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.host_rows import memory_of
from sllm.runtime.weights.recurring import Recurring
from sllm.runtime.weights.residency import HOST_SLOTS
from sllm_store.decoder_layer import decoder_layer
from sllm_store.products import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm.runtime.batch import Span
    from sllm.runtime.config.model import LayerConfig, ModelConfig
    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.quant.host_rows import HostRows
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.source import Weights
    from sllm_store.decoder_layer import DecoderLayer

SHORT_SPAN = 64
"""Spans of up to so many tokens attend natively, as a step of decoding does."""

_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
}


class HostLayer:
    """One layer over its weights. What it computes of a token depends on that token alone, but for
    the attention of long spans.
    """

    def __init__(
        self, native: DecoderLayer, owners: tuple[object, ...], attention: Attention, index: int
    ) -> None:
        self._native = native
        self._owners = owners
        self._attention = attention
        self._index = index

    def __call__(self, x: torch.Tensor, passage: Passage) -> torch.Tensor:
        """Add to the residual stream (tokens, hidden) what the layer says, in place."""
        memory = passage.memory.layers[self._index]
        assert isinstance(memory, AttentionMemory)
        config, threads = self._attention.config, torch.get_num_threads()
        rotation = memory_of(passage.rotation.cos), memory_of(passage.rotation.sin)
        cache, states = (memory_of(memory.keys), memory_of(memory.values)), memory_of(x)
        query = torch.empty((len(x), config.heads, config.head_dim))
        mixed = torch.empty_like(query)
        asked, answered = memory_of(query), memory_of(mixed)
        self._native.begin(
            states,
            rotation=rotation,
            cache=cache,
            written=memory_of(passage.places),
            query=asked,
            threads=threads,
        )
        short = []
        for span in passage.spans:
            places = passage.seen(span, config.window)
            if span.count <= SHORT_SPAN:
                short.append((span.first_row, span.count, memory_of(places)))
            else:
                mixed[span.rows] = self._attend(query, memory, places, span)
        self._native.attend(asked, cache, spans=short, mixed=answered, threads=threads)
        self._native.finish(states, answered, threads)
        return x

    def _attend(
        self, query: torch.Tensor, memory: AttentionMemory, places: torch.Tensor, span: Span
    ) -> torch.Tensor:
        return self._attention.attend_span(query[span.rows], memory, places, span)


class HostLayers:
    """Finds what native code computes of a model's layers, whose states are float32 on the CPU."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._found: Recurring[Weights, HostLayer | None] = Recurring(
            len(config.layers) * HOST_SLOTS
        )

    def find(self, index: int, weights: Weights) -> HostLayer | None:
        """Return a layer over weights that are there now; None if PyTorch has to compute it."""
        layer = self._config.layers[index]
        return self._found.get(weights, lambda found: self._make(index, layer, found))

    def _make(self, index: int, layer: LayerConfig, weights: Weights) -> HostLayer | None:
        config, mixer = self._config, layer.mixer
        if not isinstance(mixer, AttentionConfig) or not isinstance(layer.mlp, MlpConfig):
            return None
        if mixer.gated or config.hidden % WIDTHS or mixer.head_dim % WIDTHS:
            return None
        rows = {name: host_rows(weights.matrices[f"{of}.weight"]) for name, of in _MATRICES.items()}
        kept = {name: found for name, found in rows.items() if found is not None}
        if len(kept) < len(rows):
            return None
        vectors = _vectors(weights, config.norm_offset)
        native = decoder_layer(
            {name: found.rows for name, found in kept.items()},
            {name: memory_of(vector) for name, vector in vectors.items()},
            {
                "hidden": config.hidden,
                "heads": mixer.heads,
                "kv_heads": mixer.kv_heads,
                "width": mixer.head_dim,
                "rotated": config.rope.rotated,
                "window": mixer.window or 0,
            },
            interleaved=config.rope.interleaved,
            epsilon=config.norm_epsilon,
        )
        owners = (*kept.values(), *vectors.values())
        return HostLayer(native, owners, Attention(mixer, config, index), index)


def host_rows(matrix: Matrix) -> HostRows | None:
    """Return what multiplies by a matrix natively, if something does."""
    return matrix.host_rows if isinstance(matrix, BlockMatrix | AffineQ4 | Dense) else None


def _vectors(weights: Weights, offset: float) -> Mapping[str, torch.Tensor]:
    """Return norms and biases by the native layer's names, in float32."""
    found = {}
    for name, of in _NORMS.items():
        if of in weights.vectors:
            wide = weights.vectors[of].float()
            found[name] = wide + offset if offset else wide.contiguous()
    for name, of in _MATRICES.items():
        if f"{of}.bias" in weights.vectors:
            found[f"{name}_bias"] = weights.vectors[f"{of}.bias"].float().contiguous()
    return found
