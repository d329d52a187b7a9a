"""Decoder: the forward pass of every architecture, over whatever gives it weights.

Which kind of block a layer has is chosen once, from the configuration; after that a layer is
x + mixer(norm(x)), then x + mlp(norm(x)), whether its weights are resident or streamed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

from sllm.runtime.config.model import AttentionConfig, DeltaConfig, MlpConfig, MoeConfig
from sllm.runtime.config.rope import DynamicScaling
from sllm.runtime.layers.attention import Attention
from sllm.runtime.layers.delta import GatedDelta
from sllm.runtime.layers.experts import Experts
from sllm.runtime.layers.host_layer import HostLayers
from sllm.runtime.layers.mlp import Mlp
from sllm.runtime.layers.norm import find_norm
from sllm.runtime.layers.operations import operations_on
from sllm.runtime.layers.passage import Passage
from sllm.runtime.layers.rope import Rope
from sllm.runtime.quant.planar import PlanarMatrix

if TYPE_CHECKING:
    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.config.model import LayerConfig, ModelConfig
    from sllm.runtime.kernels.operands import Norm
    from sllm.runtime.layers.operations import Operations
    from sllm.runtime.layers.recorded_steps import RecordedSteps
    from sllm.runtime.layers.recording import Recorder
    from sllm.runtime.layers.step_inputs import StepInputs
    from sllm.runtime.layers.token_layers import TokenLayers
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
        recorder: Recorder | None = None,
    ) -> None:
        """Steps of decoding are recorded if there is a recorder, and the model allows it."""
        self.config = config
        self.device = device or torch.device("cpu")
        self._source = source
        self.dtype = dtype
        # Nobody on a CPU asks for what only kernels make use of.
        fixes = self.device.type == "cuda" and _has_nibbles(source)
        self._operations = operations or operations_on(self.device, fixes=fixes)
        self._rope = Rope(config.rope, self.device, self._operations)
        self._mixers = [_mixer(layer, config, i) for i, layer in enumerate(config.layers)]
        self._mlps = [_mlp(layer) for layer in config.layers]
        native = operations is None and dtype == torch.float32 and self.device.type == "cpu"
        self._host = HostLayers(config) if native else None
        self._token: TokenLayers | None = None
        if operations is None and self.device.type == "cuda":
            from sllm.runtime.layers.token_layers import TokenLayers

            self._token = TokenLayers.on(config, self.device, stays=source.stays)
        self._moves_states = any(isinstance(layer.mixer, DeltaConfig) for layer in config.layers)
        self._has_experts = any(isinstance(layer.mlp, MoeConfig) for layer in config.layers)
        self._steps: RecordedSteps | None = None
        if recorder is not None and self._operations.records:
            from sllm.runtime.layers.recorded_steps import MOST_ROWS, RecordedSteps

            most_rows = int(min(MOST_ROWS, _most_rows(config, source)))
            if most_rows:
                self._steps = RecordedSteps(
                    self._step,
                    recorder,
                    self.device,
                    most_rows=most_rows,
                    moves_states=self._moves_states,
                )

    @torch.inference_mode()
    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        """Return the logits of the batch's outputs, in float32: (outputs, vocabulary).

        Every sequence of the batch is longer by its span afterwards. If this raises, the sequences
        of the batch are as long as before, but layers without a cache of tokens may have moved on:
        close them.
        """
        if self._steps is None or not self._steps.takes(batch):
            return self._logits(*self._last_states(batch, memory)).float()
        logits = self._steps.run(batch, memory)
        _note_lengths(batch)
        return logits

    @property
    def steps_ahead(self) -> bool:
        """Whether steps may be asked for whose tokens are on the device alone."""
        return self._steps is not None and not self._moves_states

    @torch.inference_mode()
    def step_ahead(
        self, batch: Batch, memory: CacheMemory, tokens: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the logits of steps whose tokens are on the device; None if they are too many.

        tokens: in the place of the batch's. Every sequence is as long as before: if the steps are
        those that were wanted, its length is the caller's to set, and else they changed nothing.
        """
        if self._steps is None or self._moves_states or not self._steps.takes(batch):
            return None
        return self._steps.run(batch, memory, tokens)

    @torch.inference_mode()
    def hidden(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        """Return the last hidden states of the batch's outputs instead: (outputs, hidden)."""
        state, _ = self._last_states(batch, memory)
        return self._join(*state, find_norm(self._source.ends, "norm", self.config))[1]

    def _logits(
        self, state: tuple[torch.Tensor, torch.Tensor | None], passage: Passage
    ) -> torch.Tensor:
        """Return the logits of every row of a state, as they are computed."""
        ends = self._source.ends
        norm = find_norm(ends, "norm", self.config)
        head = ends.matrices["embed_tokens.weight" if self.config.tied else "lm_head.weight"]
        token = self._token_for(passage, len(state[0]))
        found = None if token is None else token.logits(state, norm, head)
        return head.linear(self._join(*state, norm)[1]) if found is None else found

    def _token_for(self, passage: Passage, tokens: int) -> TokenLayers | None:
        """Return what computes a pass that is a step of one request, if it is."""
        token = self._token
        return token if token is not None and token.takes(passage, tokens) else None

    def _step(self, inputs: StepInputs, memory: CacheMemory) -> torch.Tensor:
        """Return the logits of every row, as they were computed.

        What differs from step to step is in the inputs.
        """
        ends = self._source.ends
        x = ends.matrices["embed_tokens.weight"].embed(inputs.tokens, self.dtype)
        rotation = self._rope.rotate(inputs.positions, (), self.dtype)
        passage = Passage(self._operations, rotation, memory, inputs.places, steps=inputs.steps)
        if self._has_experts and len(inputs.places) > 1:
            passage.dead = inputs.places < 0
        if self._moves_states:
            passage.slots = inputs.slots.long()
        return self._logits(self._through_layers(x, passage), passage)

    def _last_states(
        self, batch: Batch, memory: CacheMemory
    ) -> tuple[tuple[torch.Tensor, torch.Tensor | None], Passage]:
        """Return the states of the batch's outputs, with what is still to be added, and how."""
        ends = self._source.ends
        x = ends.matrices["embed_tokens.weight"].embed(batch.tokens, self.dtype)
        rotation = self._rope.rotate(batch.positions, batch.spans, self.dtype)
        passage = Passage.of(batch, rotation, memory, self._operations)
        x, added = self._through_layers(x, passage)
        _note_lengths(batch)
        x = x.index_select(0, batch.outputs)
        added = None if added is None else added.index_select(0, batch.outputs)
        return (x, added), passage

    def _through_layers(
        self, x: torch.Tensor, passage: Passage
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the residual stream, and what is still to be added to it."""
        added: torch.Tensor | None = None
        token = self._token_for(passage, len(x))
        for index in range(len(self._mixers)):
            with self._source.layer(index) as weights:
                native = None if self._host is None else self._host.find(index, weights)
                if native is not None:
                    x, added = native(x if added is None else x + added, passage), None
                    continue
                state = x, added
                found = None if token is None else token.compute(index, state, weights, passage)
                x, added = found or self._through_layer(index, state, weights, passage)
        return x, added

    def _through_layer(
        self,
        index: int,
        state: tuple[torch.Tensor, torch.Tensor | None],
        weights: Weights,
        passage: Passage,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream before what the layer's second half adds to it, and that."""
        x, normed = self._join(*state, find_norm(weights, "input_layernorm", self.config))
        added = self._mixers[index](normed, weights, passage)
        x, normed = self._join(
            x, added, find_norm(weights, "post_attention_layernorm", self.config)
        )
        return x, self._mlps[index](normed, weights, passage)

    def _join(
        self, x: torch.Tensor, added: torch.Tensor | None, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream with what is added to it, and that normalised."""
        if added is None:
            return x, self._operations.normalise(x, norm)
        return self._operations.add_normalised(x, added, norm)


def _has_nibbles(source: WeightSource) -> bool:
    """Return whether products of layers that stay take nibbles as they are."""
    from sllm.runtime.kernels.nibble_planes import has_nibbles

    if not source.stays:
        return False
    with source.layer(0) as weights:
        matrices = [one for one in weights.matrices.values() if isinstance(one, PlanarMatrix)]
        return any(has_nibbles(matrix.planes) for matrix in matrices)


def _note_lengths(batch: Batch) -> None:
    for span in batch.spans:
        span.sequence.length = span.end


def _most_rows(config: ModelConfig, source: WeightSource) -> float:
    """Return of how many rows every step asks for the same, at the same places, but for its inputs.

    There are none where weights move, or the host looks at numbers or at a sequence's length.
    """
    if not source.stays or isinstance(config.rope.scaling, DynamicScaling):
        return 0
    return min(_most_layer_rows(layer, source, index) for index, layer in enumerate(config.layers))


def _most_layer_rows(layer: LayerConfig, source: WeightSource, index: int) -> float:
    if isinstance(layer.mlp, MlpConfig):
        return math.inf
    with source.layer(index) as weights:
        grouped = None if weights.experts is None else weights.experts.grouped
    if grouped is None:
        return 0
    return math.inf if grouped.most_pairs is None else grouped.most_pairs // layer.mlp.chosen


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
