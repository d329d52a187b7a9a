"""TokenLayers: a step of one request on a GPU, a layer in five launches.

Each is a product whose weights are on their way before it begins, with what makes its x as part of
it, or attention with all that is around it. For layers of attention and a gated MLP whose matrices
are of Q4_0's kind, from Hopper on; what is computed is the same whether weights stay or move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm.runtime.cache.memory import AttentionMemory
from sllm.runtime.config.model import AttentionConfig, MlpConfig
from sllm.runtime.kernels.operands import NewHeads, Places
from sllm.runtime.kernels.plane_maps import has_tiles
from sllm.runtime.kernels.token_attention import AttentionShape, TokenAttention
from sllm.runtime.kernels.token_products import TokenProducts, can_multiply_tokens, shape_of
from sllm.runtime.layers.norm import find_head_norms, find_norm
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.joining import GATE_UP, QKV

if TYPE_CHECKING:
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.kernels.operands import HeadNorms, Norm
    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.source import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer as the launches take it: matrices, of which some are joined, and vectors."""

    qkv: Planes
    output: Planes
    gate_up: Planes
    down: Planes
    norm: Norm
    mlp_norm: Norm
    heads: HeadNorms | None
    bias: torch.Tensor | None
    attention: AttentionShape
    window: int | None


class TokenLayers:
    """Computes the layers that it can; `stays` says whether weights do."""

    def __init__(self, config: ModelConfig, device: torch.device, *, stays: bool) -> None:
        self._config = config
        self._device = device
        self._stays = stays
        self._products = TokenProducts(device)
        self._attentions: dict[AttentionShape, TokenAttention] = {}
        self._layers: dict[int, _Layer | None] = {}

    @classmethod
    def on(cls, config: ModelConfig, device: torch.device, *, stays: bool) -> TokenLayers | None:
        """Return what computes a model's layers on a device; None if that cannot."""
        able = can_multiply_tokens(device) and _has_such_layers(config)
        return cls(config, device, stays=stays) if able else None

    @staticmethod
    def takes(passage: Passage, tokens: int) -> bool:
        """Return whether a pass is a step of one request."""
        return tokens == 1 and passage.steps is not None and not passage.alone

    def compute(
        self,
        index: int,
        state: tuple[torch.Tensor, torch.Tensor | None],
        weights: Weights,
        passage: Passage,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the residual stream, and what is still to be added to it; None if it cannot.

        state: the same before the layer.
        """
        dtype, memory = state[0].dtype, passage.memory.layers[index]
        layer = self._find(index, weights, dtype)
        if layer is None or not isinstance(memory, AttentionMemory) or memory.keys.dtype != dtype:
            return None
        products = self._products
        x, heads = products.multiply_normed(state, layer.norm, layer.qkv, bias=layer.bias)
        added = products.multiply(self._attend(layer, heads, memory, passage), layer.output)
        x, opened = products.multiply_normed((x, added), layer.mlp_norm, layer.gate_up, gated=True)
        return x, products.multiply(opened, layer.down)

    def logits(
        self, state: tuple[torch.Tensor, torch.Tensor | None], norm: Norm, head: Matrix
    ) -> torch.Tensor | None:
        """Return what the head makes of a state, normalised; None if it cannot."""
        planes = _planes_of(head)
        if planes is None or norm.offset:
            return None
        if not shape_of(state[0], planes, norm=norm.weight).fits(self._device):
            return None
        return self._products.multiply_normed(state, norm, planes)[1]

    def _attend(
        self,
        layer: _Layer,
        heads: torch.Tensor,
        memory: AttentionMemory,
        passage: Passage,
    ) -> torch.Tensor:
        """Return what is mixed of the cache: (1, heads * head_dim)."""
        shape, steps = layer.attention, passage.steps
        assert steps is not None, "it is a step"
        if shape.suits(steps.room):
            paged, place = steps.over(memory, layer.window), passage.places.to(torch.int32)
            return self._attention(shape).attend(
                heads, passage.rotation, paged, place, norms=layer.heads
            )
        parts = [shape.heads, shape.kv_heads, shape.kv_heads]
        query, key, value = heads.view(1, -1, shape.head_dim).split(parts, dim=1)
        query = passage.operations.place_heads(
            NewHeads(query=query, key=key, value=value),
            layer.heads,
            passage.rotation,
            Places(keys=memory.keys, values=memory.values, tokens=passage.places),
        )
        return steps.attend(query, memory, layer.window)

    def _attention(self, shape: AttentionShape) -> TokenAttention:
        if shape not in self._attentions:
            self._attentions[shape] = TokenAttention(shape, self._device)
        return self._attentions[shape]

    def _find(self, index: int, weights: Weights, dtype: torch.dtype) -> _Layer | None:
        if not self._stays:
            return self._read(index, weights, dtype)
        if index not in self._layers:
            self._layers[index] = self._read(index, weights, dtype)
        return self._layers[index]

    def _read(self, index: int, weights: Weights, dtype: torch.dtype) -> _Layer | None:
        """Return a layer as the launches take it; None if they do not."""
        mixer = self._config.layers[index].mixer
        assert isinstance(mixer, AttentionConfig)
        matrices = (
            weights.joined.get(QKV),
            weights.matrices.get("self_attn.o_proj.weight"),
            weights.joined.get(GATE_UP),
            weights.matrices.get("mlp.down_proj.weight"),
        )
        planes = [one for one in map(_planes_of, matrices) if one is not None]
        if len(planes) < len(matrices):
            return None
        qkv, output, gate_up, down = planes
        bias = None
        if mixer.qkv_bias:
            bias = torch.cat([weights.vectors[f"{name}.bias"] for name in QKV])
        norm, mlp_norm = (
            find_norm(weights, name, self._config)
            for name in ("input_layernorm", "post_attention_layernorm")
        )
        layer = _Layer(
            qkv=qkv,
            output=output,
            gate_up=gate_up,
            down=down,
            norm=norm,
            mlp_norm=mlp_norm,
            heads=find_head_norms(weights, self._config) if mixer.qk_norm else None,
            bias=bias,
            attention=AttentionShape(
                heads=mixer.heads,
                kv_heads=mixer.kv_heads,
                head_dim=mixer.head_dim,
                qk_norm=mixer.qk_norm,
                interleaved=self._config.rope.interleaved,
                dtype=dtype,
                vectors=norm.weight.dtype,
            ),
            window=mixer.window,
        )
        return layer if self._fits(layer, dtype) else None

    def _fits(self, layer: _Layer, dtype: torch.dtype) -> bool:
        vectors = [layer.norm.weight, layer.mlp_norm.weight]
        if layer.heads is not None:
            vectors += [layer.heads.query.weight, layer.heads.key.weight]
        if layer.bias is not None:
            vectors.append(layer.bias)
        if len({vector.dtype for vector in vectors}) > 1 or not layer.attention.fits:
            return False
        x, norm = torch.empty(0, dtype=dtype), layer.norm.weight
        shapes = (
            shape_of(x, layer.qkv, norm=norm, bias=layer.bias),
            shape_of(x, layer.output),
            shape_of(x, layer.gate_up, norm=norm, gated=True),
            shape_of(x, layer.down),
        )
        return all(shape.fits(self._device) for shape in shapes)


def _has_such_layers(config: ModelConfig) -> bool:
    """Return whether layers are of the kind that the launches compute, whatever their weights."""
    return not config.norm_offset and all(
        isinstance(layer.mixer, AttentionConfig)
        and not layer.mixer.gated
        and not layer.mixer.output_bias
        and layer.mixer.head_dim == config.rope.rotated
        and isinstance(layer.mlp, MlpConfig)
        and not layer.mlp.bias
        for layer in config.layers
    )


def _planes_of(matrix: Matrix | None) -> Planes | None:
    """Return the planes of a matrix, if they are of Q4_0's kind."""
    if isinstance(matrix, PlanarMatrix) and has_tiles(matrix.planes):
        return matrix.planes
    return None
