"""A recorder that behaves as a graph does, without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class FakeRecorder:
    """Computes when it records, and puts each later result where the first was."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Note it."""
        self.recorded += 1
        found = compute()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return found.copy_(compute())

        return replay
