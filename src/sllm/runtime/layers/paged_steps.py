"""PagedSteps: tokens of a batch's short spans, which attend to the cache's pages in one launch.

A span's keys and values are all in the cache before any of its tokens attends. So each token is a
step by itself, of a sequence that ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm.runtime.cache.memory import PAGE_TOKENS
from sllm.runtime.kernels.attention import Paged, attend_paged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.batch import Span
    from sllm.runtime.cache.memory import AttentionMemory

_FEWEST_COLUMNS = 32


@dataclass(frozen=True, slots=True)
class PagedSteps:
    """Where the steps are in a batch, and whose pages they attend to; the same in every layer.

    rows: of the batch, one for each step. pages: (steps, columns), int32. lengths: (steps,), int32,
    of each sequence up to its step.
    """

    rows: slice | torch.Tensor
    pages: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> PagedSteps:
        """Line up the tokens of some spans."""
        columns = count_columns(max(len(span.sequence.pages) for span in spans))
        pages: list[list[int]] = []
        rows: list[int] = []
        for span in spans:
            own = span.sequence.pages
            pages += [own + [0] * (columns - len(own))] * span.count
            rows += range(span.first_row, span.first_row + span.count)
        lengths = [position + 1 for span in spans for position in range(span.start, span.end)]
        joined = rows == list(range(rows[0], rows[0] + len(rows)))
        return cls(
            slice(rows[0], rows[0] + len(rows)) if joined else torch.tensor(rows, device=device),
            torch.tensor(pages, dtype=torch.int32, device=device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        )

    def attend(
        self,
        query: torch.Tensor,
        memory: AttentionMemory,
        window: int | None,
        *,
        fixes: bool = False,
    ) -> torch.Tensor:
        """Return (steps, heads * head_dim) of the steps' queries, (steps, heads, head_dim).

        fixes: for a product with nibbles.
        """
        return attend_paged(query, self.over(memory, window), fixes=fixes)

    def over(self, memory: AttentionMemory, window: int | None) -> Paged:
        """Return what they attend to in one layer."""
        return Paged(
            keys=memory.keys,
            values=memory.values,
            pages=self.pages,
            lengths=self.lengths,
            page_tokens=PAGE_TOKENS,
            window=window,
        )

    @property
    def room(self) -> int:
        """For how many tokens of a sequence there are columns."""
        return self.pages.shape[1] * PAGE_TOKENS


def count_columns(pages: int) -> int:
    """Return how wide a table of so many pages is: a power of two, so that few widths occur."""
    return max(1 << (pages - 1).bit_length(), _FEWEST_COLUMNS)
