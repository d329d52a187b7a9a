"""Passage: what every layer shares while one batch goes through the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.batch import Batch, Span
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.kernels.operands import Rotation
    from sllm.runtime.layers.operations import Operations
    from sllm.runtime.layers.paged_steps import PagedSteps


@dataclass(slots=True)
class Passage:
    """One batch on its way through the layers: its rotation, and where its tokens are cached.

    places: of each token in the cache. dead: which rows have no token, if any may not and there are
    experts. steps: short spans, which attend all at once, if they do; `spans` has them too, and
    `alone` the others. slots: of the sequences of a recorded step, which has no spans. Places are
    worked out once and used by every layer.
    """

    operations: Operations
    rotation: Rotation
    memory: CacheMemory
    places: torch.Tensor
    spans: Sequence[Span] = ()
    steps: PagedSteps | None = None
    dead: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    _read: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, batch: Batch, rotation: Rotation, memory: CacheMemory, operations: Operations
    ) -> Passage:
        """Begin the passage of a batch."""
        places: list[int] = []
        for span in batch.spans:
            places.extend(span.sequence.places(span.start, span.end))
        device = batch.tokens.device
        return cls(
            operations,
            rotation,
            memory,
            torch.tensor(places, dtype=torch.long, device=device),
            batch.spans,
            operations.line_up(batch.spans, device),
        )

    @property
    def alone(self) -> Sequence[Span]:
        """Return the spans that attend one by one."""
        if self.steps is None:
            return self.spans
        return [span for span in self.spans if not span.is_short]

    def seen(self, span: Span, window: int | None) -> torch.Tensor:
        """Return the places of every token that some token of a span sees, oldest first."""
        key = (span.first_row, window)
        if key not in self._read:
            first = 0 if window is None else max(span.start - window + 1, 0)
            places = span.sequence.places(first, span.end)
            self._read[key] = torch.tensor(places, dtype=torch.long, device=self.places.device)
        return self._read[key]
