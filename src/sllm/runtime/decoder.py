"""Decoder: the forward pass of every architecture, over whatever gives it weights.

Which kind of block a layer has is chosen once, from the configuration; after that a layer is
x + mixer(norm(x)), then x + mlp(norm(x)), whether its weights are resident or streamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from sllm.runtime.config.model import AttentionConfig, DeltaConfig, MlpConfig, MoeConfig
from sllm.runtime.kernels.operands import Norm
from sllm.runtime.layers.attention import Attention
from sllm.runtime.layers.delta import GatedDelta
from sllm.runtime.layers.experts import Experts
from sllm.runtime.layers.mlp import Mlp
from sllm.runtime.layers.operations import operations_on
from sllm.runtime.layers.passage import Passage
from sllm.runtime.layers.rope import Rope

if TYPE_CHECKING:
    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.config.model import LayerConfig, ModelConfig
    from sllm.runtime.layers.operations import Operations
    from sllm.runtime.weights.source import Weights, WeightSource


class Block(Protocol):
    """One half of a layer: what it adds to the residual stream."""

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor: ...


class Decoder:
    """A model that computes. One batch at a time; the cache belongs to the caller."""

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        operations: Operations | None = None,
    ) -> None:
        self.config = config
        self.device = device or torch.device("cpu")
        self._source = source
        self.dtype = dtype
        self._operations = operations or operations_on(self.device)
        self._rope = Rope(config.rope, self.device)
        self._mixers = [_mixer(layer, config, i) for i, layer in enumerate(config.layers)]
        self._mlps = [_mlp(layer) for layer in config.layers]

    @torch.inference_mode()
    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        """Return the logits of the batch's outputs, in float32: (outputs, vocabulary).

        Every sequence of the batch is longer by its span afterwards. If this raises, the sequences
        of the batch are as long as before, but layers without a cache of tokens may have moved on:
        close them.
        """
        x = self._last_states(batch, memory)
        head = "embed_tokens.weight" if self.config.tied else "lm_head.weight"
        return self._source.ends.matrices[head].linear(x).float()

    @torch.inference_mode()
    def hidden(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        """Return the last hidden states of the batch's outputs instead: (outputs, hidden)."""
        return self._last_states(batch, memory)

    def _last_states(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        ends = self._source.ends
        x = ends.matrices["embed_tokens.weight"].embed(batch.tokens, self.dtype)
        rotation = self._rope.rotate(batch.positions, batch.spans, self.dtype)
        passage = Passage.of(batch, rotation, memory, self._operations)
        x, added = self._through_layers(x, passage)
        for span in batch.spans:
            span.sequence.length = span.end
        x, added = (part.index_select(0, batch.outputs) for part in (x, added))
        return self._operations.add_normalised(x, added, self._norm(ends, "norm"))[1]

    def _through_layers(
        self, x: torch.Tensor, passage: Passage
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream before what the last layer adds to it, and that."""
        add_normalised = self._operations.add_normalised
        added: torch.Tensor | None = None
        for index, (mixer, mlp) in enumerate(zip(self._mixers, self._mlps, strict=True)):
            with self._source.layer(index) as weights:
                norm = self._norm(weights, "input_layernorm")
                if added is None:
                    normed = self._operations.normalise(x, norm)
                else:
                    x, normed = add_normalised(x, added, norm)
                added = mixer(normed, weights, passage)
                norm = self._norm(weights, "post_attention_layernorm")
                x, normed = add_normalised(x, added, norm)
                added = mlp(normed, weights, passage)
        assert added is not None, "a model has layers"
        return x, added

    def _norm(self, weights: Weights, name: str) -> Norm:
        return Norm(
            weight=weights.vectors[f"{name}.weight"],
            epsilon=self.config.norm_epsilon,
            offset=self.config.norm_offset,
        )


def _mixer(layer: LayerConfig, config: ModelConfig, index: int) -> Block:
    match layer.mixer:
        case AttentionConfig() as attention:
            return Attention(attention, config, index)
        case DeltaConfig() as delta:
            return GatedDelta(delta, config, index)


def _mlp(layer: LayerConfig) -> Block:
    match layer.mlp:
        case MlpConfig():
            return Mlp()
        case MoeConfig() as moe:
            return Experts(moe)
