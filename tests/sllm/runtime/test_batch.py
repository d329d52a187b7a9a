"""Pieces of several requests line up, each at its own position."""

from __future__ import annotations

import pytest

from sllm.core.errors import CacheFullError
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.sequence import PageBooks


def test_rows_positions_and_outputs_follow_the_pieces() -> None:
    books = PageBooks(pages=8, page_tokens=4, slots=3)
    prompt, decoding, silent = (books.open() for _ in range(3))
    decoding.length = 6
    batch = Batch.of(
        [
            Piece(sequence=prompt, tokens=[5, 6, 7], outputs=2),
            Piece(sequence=decoding, tokens=[9]),
            Piece(sequence=silent, tokens=[1, 2], outputs=0),
        ]
    )
    assert batch.tokens.tolist() == [5, 6, 7, 9, 1, 2]
    assert batch.positions.tolist() == [0, 1, 2, 6, 0, 1]
    assert batch.outputs.tolist() == [1, 2, 3]
    assert [(span.start, span.end, span.rows) for span in batch.spans] == [
        (0, 3, slice(0, 3)),
        (6, 7, slice(3, 4)),
        (0, 2, slice(4, 6)),
    ]
    assert [len(span.sequence.pages) for span in batch.spans] == [1, 2, 1]


def test_a_batch_without_room_is_refused_before_anything_is_computed() -> None:
    books = PageBooks(pages=1, page_tokens=4, slots=1)
    sequence = books.open()
    with pytest.raises(CacheFullError):
        Batch.of([Piece(sequence=sequence, tokens=list(range(5)))])
    assert sequence.length == 0
