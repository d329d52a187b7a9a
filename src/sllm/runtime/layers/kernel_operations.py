"""KernelOperations: Triton's kernels for what layers compute between products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.layers.paged_steps import PagedSteps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.batch import Span


class KernelOperations:
    """Operations on a GPU; Triton's interpreter runs them on a CPU, in tests."""

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Have every span of one token attend in one launch."""
        steps = [span for span in spans if span.count == 1]
        return PagedSteps.of(steps, device) if steps else None
