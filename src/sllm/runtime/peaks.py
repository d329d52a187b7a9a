"""Peaks: the greatest of each row of logits, found on the device and waited for later.

Whoever decodes greedily needs nothing else of logits, so a step's peaks are the next one's tokens:
a device has them before the host does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from sllm.runtime.one_thread import on_one_thread


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest of some logits, and the first token that has it."""

    logit: float
    token: int


class PendingPeaks:
    """The peaks of some rows, which the device may not have found yet.

    tokens: of the peaks, on the device: (rows,).
    """

    def __init__(self, found: torch.Tensor) -> None:
        """found: logits and tokens, (2, rows), in float64."""
        self.tokens = found[1]
        self._host = found.to("cpu", non_blocking=True)
        self._brought: torch.cuda.Event | None = None
        if found.device.type == "cuda":
            self._brought = torch.cuda.Event()
            self._brought.record(torch.cuda.current_stream(found.device))

    @cached_property
    def all(self) -> list[Peak]:
        """The peak of each row; waits for them alone, and for nothing that was asked for later."""
        if self._brought is not None:
            self._brought.synchronize()
        logits, tokens = self._host.tolist()
        return [Peak(logit, int(token)) for logit, token in zip(logits, tokens, strict=True)]


@on_one_thread
def ask_peaks(logits: torch.Tensor) -> PendingPeaks:
    """Have the device find the peak of each row (tokens, vocabulary)."""
    if logits.device.type == "cuda":
        from sllm.runtime.kernels.peaks import peaks

        return PendingPeaks(peaks(logits))
    values, tokens = logits.max(dim=-1)
    return PendingPeaks(torch.stack((values.double(), tokens.double())))


def find_peaks(logits: torch.Tensor) -> list[Peak]:
    """Return the peak of each row (tokens, vocabulary), for one wait for the device."""
    return ask_peaks(logits).all
