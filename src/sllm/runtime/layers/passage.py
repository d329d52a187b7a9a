"""Passage: what every layer shares while one batch goes through the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sllm.runtime.batch import Batch, Span
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.layers.rope import Rotation


@dataclass(slots=True)
class Passage:
    """One batch on its way through the layers: its rotation, and where its tokens are cached.

    Places are worked out once and used by every layer.
    """

    batch: Batch
    rotation: Rotation
    memory: CacheMemory
    written: torch.Tensor = field(init=False)
    _read: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places: list[int] = []
        for span in self.batch.spans:
            places.extend(span.sequence.places(span.start, span.end))
        self.written = torch.tensor(places, dtype=torch.long, device=self.batch.tokens.device)

    def seen(self, span: Span, window: int | None) -> torch.Tensor:
        """Return the places of every token that some token of a span sees, oldest first."""
        key = (span.first_row, window)
        if key not in self._read:
            first = 0 if window is None else max(span.start - window + 1, 0)
            places = span.sequence.places(first, span.end)
            self._read[key] = torch.tensor(places, dtype=torch.long, device=self.written.device)
        return self._read[key]
