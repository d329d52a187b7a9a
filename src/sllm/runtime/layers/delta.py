"""Gated DeltaNet: linear attention whose memory of a sequence is one matrix per head.

With decay a, key k, value v and strength b of each token, a head's state S (key_dim, value_dim)
becomes a S + b k (v - (a S)' k)', and its output is S' q. Decoding does just that,
for all sequences of a batch at once; longer spans go in chunks, where one triangular system stands
for the updates within a chunk: a few large products instead of a step per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sllm.runtime.cache.memory import DeltaMemory
from sllm.runtime.layers.norm import rms_norm

if TYPE_CHECKING:
    from sllm.runtime.batch import Span
    from sllm.runtime.config.model import DeltaConfig, ModelConfig
    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.weights.source import Weights

CHUNK = 64
_LENGTH_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Projected:
    """One layer's inputs for some tokens, in float32 but for `mixed` and `gate`.

    mixed: what is convolved, (tokens, channels); gate: (tokens, value_heads, value_dim);
    decay: its logarithm, (tokens, value_heads); strength: (tokens, value_heads).
    """

    mixed: torch.Tensor
    gate: torch.Tensor
    decay: torch.Tensor
    strength: torch.Tensor

    def some(self, rows: torch.Tensor) -> Projected:
        """Return those of some tokens."""
        found = (part[rows] for part in (self.mixed, self.gate, self.decay, self.strength))
        return Projected(*found)


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values per value head, in float32: (heads, tokens, dim)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return all three."""
        return self.query, self.key, self.value


class GatedDelta:
    """The gated DeltaNet of one layer."""

    def __init__(self, config: DeltaConfig, model: ModelConfig, index: int) -> None:
        self._config = config
        self._index = index
        self._epsilon = model.norm_epsilon

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor:
        """Return what the layer adds to the residual stream; states move on."""
        memory = passage.memory.layers[self._index]
        assert isinstance(memory, DeltaMemory)
        projected = self._project(x, weights)
        kernel = weights.vectors["linear_attn.conv1d.weight"].to(x.dtype)
        mixed = torch.empty(
            (len(x), self._config.value_heads, self._config.value_dim), device=x.device
        )
        spans = passage.spans
        _forget([span.sequence.slot for span in spans if span.start == 0], memory)
        if passage.slots is not None:
            mixed = self._step(passage.slots, projected, kernel, memory)
        steps = [span for span in spans if span.count == 1]
        if steps:
            rows = torch.tensor([span.first_row for span in steps], device=x.device)
            slots = torch.tensor([span.sequence.slot for span in steps], device=x.device)
            mixed[rows] = self._step(slots, projected.some(rows), kernel, memory)
        for span in spans:
            for part in _parts(span):
                mixed[part.rows] = self._run(part, projected, kernel, memory)
                saved = part.sequence.saved
                if saved is not None and part.end == saved.position:
                    memory.copy_state(part.sequence.slot, saved.slot)
        normed = rms_norm(
            mixed.to(x.dtype),
            weights.vectors["linear_attn.norm.weight"],
            epsilon=self._epsilon,
            offset=0.0,
        )
        gated = normed * functional.silu(projected.gate.float())
        return weights.project("linear_attn.out_proj", gated.to(x.dtype).flatten(-2))

    def _project(self, x: torch.Tensor, weights: Weights) -> Projected:
        if self._config.grouped:
            mixed, gate, strength, decay = self._project_grouped(x, weights)
        else:
            mixed = weights.project("linear_attn.in_proj_qkv", x)
            gate = weights.project("linear_attn.in_proj_z", x)
            gate = gate.unflatten(-1, (self._config.value_heads, -1))
            strength = weights.project("linear_attn.in_proj_b", x)
            decay = weights.project("linear_attn.in_proj_a", x)
        rate = weights.vectors["linear_attn.A_log"].float().exp()
        bias = weights.vectors["linear_attn.dt_bias"].float()
        return Projected(
            mixed,
            gate,
            decay=-rate * functional.softplus(decay.float() + bias),
            strength=strength.sigmoid().float(),
        )

    def _project_grouped(
        self, x: torch.Tensor, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mixed, gate, strength and decay out of Qwen3-Next's order, by key head."""
        config = self._config
        each = config.value_heads // config.key_heads
        widths = [config.key_dim, config.key_dim, each * config.value_dim, each * config.value_dim]
        wide = weights.project("linear_attn.in_proj_qkvz", x).unflatten(-1, (config.key_heads, -1))
        query, key, value, gate = wide.split(widths, dim=-1)
        mixed = torch.cat((query.flatten(1), key.flatten(1), value.flatten(1)), dim=-1)
        gate = gate.reshape(len(x), config.value_heads, config.value_dim)
        narrow = weights.project("linear_attn.in_proj_ba", x).unflatten(-1, (config.key_heads, -1))
        strength, decay = narrow.chunk(2, dim=-1)
        return mixed, gate, strength.flatten(1), decay.flatten(1)

    def _step(
        self, slots: torch.Tensor, projected: Projected, kernel: torch.Tensor, memory: DeltaMemory
    ) -> torch.Tensor:
        """Return (slots, value_heads, value_dim) of one token each; their states move on."""
        new = projected.mixed.unsqueeze(-1)
        inputs = torch.cat((memory.convolved[slots].to(new.dtype), new), dim=-1)
        memory.convolved[slots] = inputs[..., 1:].to(memory.convolved.dtype)
        heads = self._heads(functional.silu((inputs * kernel.squeeze(1)).sum(-1)))
        one_each = Heads(*(part.transpose(0, 1).unsqueeze(2) for part in heads.parts()))
        states = memory.recurrent[slots]
        out, state = _recur(one_each, projected.decay, projected.strength, states)
        memory.recurrent[slots] = state
        return out.squeeze(2)

    def _run(
        self, span: Span, projected: Projected, kernel: torch.Tensor, memory: DeltaMemory
    ) -> torch.Tensor:
        """Return (tokens, value_heads, value_dim) of one span; its sequence's states move on."""
        slot = span.sequence.slot
        mixed = self._convolve(projected.mixed[span.rows], kernel, memory.convolved[slot])
        heads = self._heads(mixed)
        decay, strength = projected.decay[span.rows].T, projected.strength[span.rows].T
        out, state = _recur_by_chunks(heads, decay, strength, memory.recurrent[slot])
        memory.recurrent[slot] = state
        return out.transpose(0, 1)

    def _convolve(
        self, mixed: torch.Tensor, kernel: torch.Tensor, last: torch.Tensor
    ) -> torch.Tensor:
        """Return silu of the causal convolution of each channel; `last` becomes the last inputs."""
        inputs = torch.cat((last.to(mixed.dtype), mixed.T), dim=-1)
        last.copy_(inputs[:, inputs.shape[-1] - last.shape[-1] :])
        out = functional.conv1d(inputs.unsqueeze(0), kernel, groups=len(kernel))
        return functional.silu(out.squeeze(0).T)

    def _heads(self, mixed: torch.Tensor) -> Heads:
        config = self._config
        widths = [config.keys_width, config.keys_width, config.values_width]
        query, key, value = mixed.float().split(widths, dim=-1)
        query = _unit(query.unflatten(-1, (config.key_heads, -1))) * config.key_dim**-0.5
        key = _unit(key.unflatten(-1, (config.key_heads, -1)))
        value = value.unflatten(-1, (config.value_heads, -1))
        each = config.value_heads // config.key_heads
        query, key = (heads.repeat_interleave(each, dim=1) for heads in (query, key))
        return Heads(*(heads.transpose(0, 1) for heads in (query, key, value)))


def _parts(span: Span) -> list[Span]:
    """Return a span of several tokens, cut where its sequence's state is to be saved."""
    saved = span.sequence.saved
    if span.count == 1 or saved is None:
        return [span] if span.count > 1 else []
    assert span.start < saved.position < span.end
    first = saved.position - span.start
    rest = replace(span, start=saved.position, first_row=span.first_row + first)
    return [replace(span, count=first), replace(rest, count=span.count - first)]


def _forget(slots: list[int], memory: DeltaMemory) -> None:
    """Clear the states of sequences that begin: their slots may have been used before."""
    if slots:
        memory.convolved[slots] = 0
        memory.recurrent[slots] = 0


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _LENGTH_EPSILON)


def _recur(
    heads: Heads, decay: torch.Tensor, strength: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output (sequences, heads, 1, value_dim) and the states after one token each.

    heads: (sequences, heads, 1, dim); decay and strength: (sequences, heads).
    """
    state = state * decay.exp()[..., None, None]
    correction = (heads.value - heads.key @ state) * strength[..., None, None]
    state = state + heads.key.transpose(-1, -2) @ correction
    return heads.query @ state, state


def _recur_by_chunks(
    heads: Heads, decay: torch.Tensor, strength: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output (heads, tokens, value_dim) and the state after all tokens."""
    outs = []
    for start in range(0, decay.shape[-1], CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = Heads(heads.query[:, rows], heads.key[:, rows], heads.value[:, rows])
        out, state = _recur_chunk(chunk, decay[:, rows], strength[:, rows], state)
        outs.append(out)
    return torch.cat(outs, dim=1), state


def _recur_chunk(
    heads: Heads, decay: torch.Tensor, strength: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and state after a chunk: its corrections solve one triangular system.

    A correction is what a token writes beyond what the state, and the tokens before it in the
    chunk, already say: u_t = b_t (v_t - sum of their decayed overlaps with k_t).
    """
    sums = decay.cumsum(-1)
    between = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril()  # exp(0) above is masked below.
    between = between.exp().tril()
    key_by = strength.unsqueeze(-1) * heads.key
    system = (key_by @ heads.key.transpose(-1, -2)) * between
    passed = sums.exp().unsqueeze(-1)
    wanted = strength.unsqueeze(-1) * heads.value - (key_by * passed) @ state
    corrections = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    overlaps = (heads.query @ heads.key.transpose(-1, -2)) * between
    out = (heads.query * passed) @ state + overlaps @ corrections
    left = (sums[:, -1:] - sums).exp().unsqueeze(-1)
    state = state * passed[:, -1:] + (heads.key * left).transpose(-1, -2) @ corrections
    return out, state
