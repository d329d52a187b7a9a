"""Softmax attention over the paged cache: grouped heads, windows, gates, normalised heads.

Each span attends to its own sequence alone, so nobody's result depends on who else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sllm.runtime.cache.memory import AttentionMemory
from sllm.runtime.kernels.operands import NewHeads, Places
from sllm.runtime.layers.host_attention import attend_token, can_attend
from sllm.runtime.layers.norm import find_head_norms
from sllm.runtime.weights.joining import QKV

if TYPE_CHECKING:
    from sllm.runtime.batch import Span
    from sllm.runtime.config.model import AttentionConfig, ModelConfig
    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.weights.source import Weights


class Attention:
    """The attention of one layer."""

    def __init__(self, config: AttentionConfig, model: ModelConfig, index: int) -> None:
        self.config = config
        self._index = index
        self._model = model

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor:
        """Return what attention adds to the residual stream; keys and values are kept."""
        memory = passage.memory.layers[self._index]
        assert isinstance(memory, AttentionMemory)
        config = self.config
        queries, keys, values = weights.project_all(QKV, x)
        query, gate = self._part_query(queries)
        key = keys.unflatten(-1, (config.kv_heads, -1))
        value = values.unflatten(-1, (config.kv_heads, -1))
        query = passage.operations.place_heads(
            NewHeads(query=query, key=key, value=value),
            find_head_norms(weights, self._model) if config.qk_norm else None,
            passage.rotation,
            Places(keys=memory.keys, values=memory.values, tokens=passage.places),
        )
        out = self._mix(query, memory, passage)
        if gate is not None:
            out = out * torch.sigmoid(gate)
        return weights.project("self_attn.o_proj", out)

    def _mix(self, query: torch.Tensor, memory: AttentionMemory, passage: Passage) -> torch.Tensor:
        """Return (tokens, heads * head_dim), what every token's sequence has cached, mixed."""
        window, steps, alone = self.config.window, passage.steps, passage.alone
        if steps is not None and not alone:
            fixes = passage.operations.fixes and not self.config.gated
            return steps.attend(query, memory, window, fixes=fixes)
        mixed = torch.empty_like(query)
        if steps is not None:
            found = steps.attend(query[steps.rows], memory, window)
            mixed[steps.rows] = found.view_as(query[steps.rows])
        native = can_attend(query, memory)
        for span in alone:
            places = passage.seen(span, window)
            if native and span.count == 1:
                attend_token(query[span.rows], memory, places, mixed[span.rows])
                continue
            mixed[span.rows] = self.attend_span(query[span.rows], memory, places, span)
        return mixed.flatten(-2)

    def _part_query(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return queries (tokens, heads, head_dim), and the gate (tokens, heads * head_dim)."""
        query = queries.unflatten(-1, (self.config.heads, -1))
        if not self.config.gated:
            return query, None
        query, gate = query.chunk(2, dim=-1)
        return query, gate.flatten(-2)

    def attend_span(
        self, query: torch.Tensor, memory: AttentionMemory, places: torch.Tensor, span: Span
    ) -> torch.Tensor:
        """Return (tokens, heads, head_dim) of one span over the places that it sees."""
        keys = memory.keys.index_select(0, places).to(query.dtype)
        values = memory.values.index_select(0, places).to(query.dtype)
        out = functional.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            keys.transpose(0, 1).unsqueeze(0),
            values.transpose(0, 1).unsqueeze(0),
            attn_mask=self._mask(span, len(keys), query.device),
            is_causal=self._is_plain(span, len(keys)),
            enable_gqa=self.config.heads != self.config.kv_heads,
        )
        return out.squeeze(0).transpose(0, 1)

    def _is_plain(self, span: Span, seen: int) -> bool:
        """Whether a span is a whole prompt within the window: causal, and nothing else."""
        fits = self.config.window is None or span.end <= self.config.window
        return span.count > 1 and seen == span.count and fits

    def _mask(self, span: Span, seen: int, device: torch.device) -> torch.Tensor | None:
        """Return which of the places that were read each token of a span sees; None for all."""
        if span.count == 1 or self._is_plain(span, seen):
            return None
        at = torch.arange(span.start, span.end, device=device).unsqueeze(1)
        place = torch.arange(span.end - seen, span.end, device=device).unsqueeze(0)
        mask = place <= at
        return mask if self.config.window is None else mask & (place > at - self.config.window)
