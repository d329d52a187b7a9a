"""Synthetic routing: which experts each token of a text is sent to, layer by layer.

An expert's score is a sum of what is liked in general, what is liked in the text at hand, what is
liked just now, and chance; the second and third drift. The defaults are calibrated to what was
reported for real models of 512 experts: an LRU of 64 per layer hits 67 %, one of 128 hits 81 %, and
the experts used most in one half of a text are few of those used in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How a router behaves: memories in tokens, weights as standard deviations of scores."""

    experts: int = 512
    chosen: int = 10
    layers: int = 4
    skew: float = 0.3
    topic: float = 1.0
    topic_tokens: float = 400.0
    local: float = 1.0
    local_tokens: float = 12.0
    noise: float = 1.0


def route_tokens(routing: Routing, *, tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Yield for each token the chosen experts: (layers, chosen), ascending."""
    random = np.random.default_rng(seed)
    shape = (routing.layers, routing.experts)
    skew = routing.skew * random.standard_normal(shape)
    topic, local = random.standard_normal(shape), random.standard_normal(shape)
    for _ in range(tokens):
        topic = _drift(topic, routing.topic_tokens, random)
        local = _drift(local, routing.local_tokens, random)
        scores = skew + routing.topic * topic + routing.local * local
        scores = scores + routing.noise * random.standard_normal(shape)
        top = np.argpartition(-scores, routing.chosen - 1, axis=1)[:, : routing.chosen]
        yield np.sort(top, axis=1)


def _drift(state: np.ndarray, memory_tokens: float, random: np.random.Generator) -> np.ndarray:
    """Return a state of unit variance, a token later."""
    kept = float(np.exp(-1.0 / memory_tokens))
    drifted: np.ndarray = kept * state + (1.0 - kept**2) ** 0.5 * random.standard_normal(
        state.shape
    )
    return drifted
