"""StepInputs: what a step of decoding is given, in tensors that stay where they are.

A batch of fewer tokens than there are rows has dead rows after them: they read one token of the
cache and keep none, and nobody looks at what they compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ref

import torch

from sllm.runtime.layers.paged_steps import PagedSteps
from sllm_store.units import align_up

if TYPE_CHECKING:
    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.sequence import CachedSequence

_FIELDS = 5
_ALIGNMENT = 32  # Numbers, so that every tensor begins where the widest loads may.


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose pages are in a row, and how many of them."""

    sequence: ref[CachedSequence]
    pages: int


class StepInputs:
    """Tokens, positions, places, slots and pages of up to `rows` steps, on up to `columns` each.

    All int32: one copy brings a step's.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self._rows = rows
        each = align_up(rows, _ALIGNMENT)
        shape = (_FIELDS * each + rows * columns,)
        on_gpu = device.type == "cuda"
        host = torch.zeros(shape, dtype=torch.int32, pin_memory=on_gpu)
        self._host = host.numpy()
        self._source = host
        self._device = torch.zeros(shape, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if on_gpu else None
        self._tokens, self._positions, self._places, self._lengths, self._slots = (
            self._host[field * each : field * each + rows] for field in range(_FIELDS)
        )
        self._pages = self._host[_FIELDS * each :].reshape(rows, columns)
        self._live = rows  # Rows that may not be dead.
        self._owners: list[_Owner | None] = [None] * rows
        self.tokens, self.positions, self.places, lengths, self.slots = (
            self._device[field * each : field * each + rows] for field in range(_FIELDS)
        )
        pages = self._device[_FIELDS * each :].view(rows, columns)
        self.steps = PagedSteps(slice(0, rows), pages, lengths)

    def fill(self, batch: Batch, tokens: torch.Tensor | None = None) -> None:
        """Take a batch of steps, of as many rows or fewer, to the device.

        tokens: on the device, in the place of the batch's.
        """
        if self._copied is not None:
            self._copied.synchronize()  # The last copy may still be read from.
        count = len(batch.ids)
        assert 0 < count <= self._rows
        self._tokens[:count] = batch.ids
        positions: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        for span in batch.spans:
            positions += range(span.start, span.end)
            places += span.sequence.places(span.start, span.end)
            slots += [span.sequence.slot] * span.count
            for row in range(span.first_row, span.first_row + span.count):
                self._fill_pages(row, span.sequence)
        self._positions[:count] = positions
        self._places[:count] = places
        self._slots[:count] = slots
        self._lengths[:count] = self._positions[:count] + 1
        self._let_die(count)
        self._device.copy_(self._source, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device.device))
        if tokens is not None:
            self.tokens[:count].copy_(tokens)

    def _fill_pages(self, row: int, sequence: CachedSequence) -> None:
        """Write the pages of a row's sequence, which has more of them from time to time."""
        owner, pages = self._owners[row], sequence.pages
        known = owner.pages if owner is not None and owner.sequence() is sequence else 0
        if known < len(pages):
            self._pages[row, known : len(pages)] = pages[known:]
            self._owners[row] = _Owner(ref(sequence), len(pages))

    def _let_die(self, count: int) -> None:
        """Have the rows from a number on dead."""
        dead = slice(count, self._live)
        for field, value in zip(
            (self._tokens, self._positions, self._places, self._lengths, self._slots, self._pages),
            (0, 0, -1, 1, 0, 0),
            strict=True,
        ):
            field[dead] = value
        self._owners[dead] = [None] * max(self._live - count, 0)
        self._live = count
