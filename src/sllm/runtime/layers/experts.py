"""A mixture of experts: a router chooses a few MLPs per token, and only those are asked for.

Experts are visited in ascending order, so a token's sum is taken in the same order whoever else is
in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sllm.runtime.layers.mlp import Mlp

if TYPE_CHECKING:
    from sllm.runtime.config.model import MoeConfig
    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.weights.source import Expert, ExpertSource, Weights

MOST_GROUPED_TOKENS = 64
"""Tokens of a batch whose experts are computed in a few launches; more are sorted by expert."""


class Experts:
    """The experts of one layer, and the one for every token where the model has it."""

    def __init__(self, config: MoeConfig) -> None:
        self._config = config
        self._shared = Mlp("mlp.shared_expert") if config.shared_width is not None else None

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor:
        """Return what the experts add to the residual stream."""
        shares, chosen = self._route(weights.project("mlp.gate", x))
        source = weights.experts
        assert source is not None, "a layer with a router has experts"
        if passage.dead is not None:
            chosen = chosen.masked_fill(passage.dead.unsqueeze(-1), -1)
        if source.grouped is not None and len(x) <= MOST_GROUPED_TOKENS:
            out = source.grouped(x, chosen, shares)
        else:
            out = _visit(source, x, chosen, shares)
        if self._shared is None:
            return out
        gate = torch.sigmoid(weights.project("mlp.shared_expert_gate", x))
        return out + gate * self._shared(x, weights, passage)

    def _route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the chosen experts of each token, and their shares of its result."""
        shares = functional.softmax(logits, dim=-1, dtype=torch.float32)
        top, chosen = torch.topk(shares, self._config.chosen, dim=-1)
        if self._config.normalised:
            top = top / top.sum(dim=-1, keepdim=True)
        return top.to(logits.dtype), chosen


def _visit(
    source: ExpertSource, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Return each token's sum over its experts, one expert after another."""
    out = torch.zeros_like(x)
    wanted = torch.unique(chosen).tolist()  # Sorted.
    for start in range(0, len(wanted), source.capacity):
        some = wanted[start : start + source.capacity]
        places = {number: torch.where(chosen == number) for number in some}
        found: dict[int, torch.Tensor] = {}
        with source.lease(some) as experts:
            for number, expert in experts.items():  # In the order in which they are there.
                found[number] = _run(expert, x[places[number][0]])
        for number in some:
            rows, ranks = places[number]
            share = shares[rows, ranks].unsqueeze(-1)
            out.index_add_(0, rows, found[number] * share)
    return out


def _run(expert: Expert, x: torch.Tensor) -> torch.Tensor:
    return expert.down.linear(functional.silu(expert.gate.linear(x)) * expert.up.linear(x))
