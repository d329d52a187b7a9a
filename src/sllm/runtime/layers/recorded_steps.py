"""RecordedSteps: steps of decoding, recorded once for a number of rows and a width of pages.

A step asks a device for hundreds of small things, and asking takes longer than most of them. It
asks for the same each time but for numbers that are in tensors, so a recording serves all steps of
its size: rows and pages are rounded up to few sizes, and each is recorded when it is first needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ref

from sllm.runtime.kernels.peaks import widen
from sllm.runtime.layers.paged_steps import count_columns
from sllm.runtime.layers.step_inputs import StepInputs

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sllm.runtime.batch import Batch, Span
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.layers.recording import Recorder

MOST_ROWS = 64
MOST_RECORDED = 24
"""Recordings that are kept: each has its logits, and what it computes with, on the device."""
_ROWS_APART = 8


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: StepInputs
    compute: Callable[[], torch.Tensor]


class RecordedSteps:
    """Computes batches of steps over one cache at a time; over another, it begins anew."""

    def __init__(
        self,
        compute: Callable[[StepInputs, CacheMemory], torch.Tensor],
        recorder: Recorder,
        device: torch.device,
        *,
        most_rows: int = MOST_ROWS,
        moves_states: bool = False,
    ) -> None:
        """`compute` returns the logits of every row, and leaves sequences as they are.

        most_rows: with which it asks for the same each time. moves_states: whether it does so with
        the states of sequences.
        """
        self._most_rows = most_rows
        self._moves_states = moves_states
        self._compute = compute
        self._recorder = recorder
        self._device = device
        self._memory: ref[CacheMemory] | None = None
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def takes(self, batch: Batch) -> bool:
        """Return whether a batch is one of steps and guesses alone, and few enough of them."""
        rows = count_rows(len(batch.ids))
        if not batch.is_steps or rows > self._most_rows:
            return False
        # A dead row has no state of its own, and a recording forgets and saves none.
        return not self._moves_states or (
            rows == len(batch.ids) == len(batch.spans) and all(map(_moves_on, batch.spans))
        )

    def run(
        self, batch: Batch, memory: CacheMemory, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits of a batch that it takes, in float32 and memory of their own.

        tokens: on the device, in the place of the batch's.
        """
        if self._memory is None or self._memory() is not memory:
            self._recorded.clear()
            self._memory = ref(memory)
        pages = max(len(span.sequence.pages) for span in batch.spans)
        size = (count_rows(len(batch.ids)), count_columns(pages))
        found = self._recorded.pop(size, None)
        if found is not None:
            found.inputs.fill(batch, tokens)
        else:
            if len(self._recorded) == MOST_RECORDED:
                del self._recorded[next(iter(self._recorded))]  # The one unused for longest.
            inputs = StepInputs(*size, self._device)
            inputs.fill(batch, tokens)
            found = self._record(inputs, batch, memory)
        self._recorded[size] = found
        return widen(found.compute()[: len(batch.ids)])

    def _record(self, inputs: StepInputs, batch: Batch, memory: CacheMemory) -> _Recorded:
        with memory.keep_states([span.sequence.slot for span in batch.spans]):
            compute = self._recorder.record(lambda: self._compute(inputs, memory))
        return _Recorded(inputs, compute)


def _moves_on(span: Span) -> bool:
    """Return whether a step's state neither begins with it nor is to be saved after it."""
    saved = span.sequence.saved
    return span.start > 0 and (saved is None or saved.position != span.end)


def count_rows(steps: int) -> int:
    """Return how many rows so many steps get: a power of two, and beyond that a multiple of 8."""
    if steps <= _ROWS_APART:
        return 1 << (steps - 1).bit_length()
    return -(-steps // _ROWS_APART) * _ROWS_APART
