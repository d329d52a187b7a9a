"""A batch: tokens of many requests, end to end, each request at its own position.

Prefill, a chunk of a prefill and a step of decoding are the same thing here: a span of one or more
tokens that continues a sequence. A batch may mix them freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.cache.sequence import CachedSequence


SHORT_TOKENS = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a request puts into a batch: the next tokens of its sequence.

    outputs: for how many of its last tokens logits are wanted.
    """

    sequence: CachedSequence
    tokens: Sequence[int]
    outputs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A batch's rows of one sequence, in order; `start` is the first one's position."""

    sequence: CachedSequence
    start: int
    first_row: int
    count: int

    @property
    def end(self) -> int:
        """Tokens that the sequence has once this span is computed."""
        return self.start + self.count

    @property
    def is_short(self) -> bool:
        """Whether it may be a step of decoding, perhaps with guesses after it."""
        return self.count <= SHORT_TOKENS

    @property
    def rows(self) -> slice:
        """Return the span's rows of the batch."""
        return slice(self.first_row, self.first_row + self.count)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Spans of distinct sequences, with what every token needs. Tensors have a row per token.

    ids: the tokens. output_rows: the rows whose logits are wanted, in order of the pieces.
    """

    spans: tuple[Span, ...]
    ids: tuple[int, ...]
    output_rows: tuple[int, ...]
    device: torch.device | None

    @property
    def is_steps(self) -> bool:
        """Whether every span is short, and the logits of all its tokens are wanted."""
        whole = len(self.ids) == len(self.output_rows)
        return whole and all(span.is_short for span in self.spans)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """The tokens, on the device."""
        return torch.tensor(self.ids, dtype=torch.long, device=self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """The position of each token in its sequence, on the device."""
        found = [position for span in self.spans for position in range(span.start, span.end)]
        return torch.tensor(found, dtype=torch.long, device=self.device)

    @cached_property
    def outputs(self) -> torch.Tensor:
        """The rows whose logits are wanted, on the device."""
        return torch.tensor(self.output_rows, dtype=torch.long, device=self.device)

    @classmethod
    def of(cls, pieces: Sequence[Piece], device: torch.device | None = None) -> Batch:
        """Line up pieces, which must be of distinct sequences and not empty.

        Room for the tokens is taken from the cache: raises CacheFullError if there is none.
        """
        assert len({id(piece.sequence) for piece in pieces}) == len(pieces), "one piece a sequence"
        spans: list[Span] = []
        tokens: list[int] = []
        outputs: list[int] = []
        for piece in pieces:
            count, start = len(piece.tokens), piece.sequence.length
            assert count > 0, "a piece has tokens"
            assert 0 <= piece.outputs <= count, "outputs are of the piece's own tokens"
            piece.sequence.reserve(start + count)
            spans.append(
                Span(sequence=piece.sequence, start=start, first_row=len(tokens), count=count)
            )
            tokens.extend(piece.tokens)
            outputs.extend(range(len(tokens) - piece.outputs, len(tokens)))
        return cls(
            spans=tuple(spans),
            ids=tuple(tokens),
            output_rows=tuple(outputs),
            device=device,
        )
