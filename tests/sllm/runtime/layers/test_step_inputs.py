"""The inputs of steps are those of the batch, whatever batch was there before."""

from __future__ import annotations

import random

import torch

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import PAGE_TOKENS
from sllm.runtime.cache.sequence import CachedSequence, PageBooks
from sllm.runtime.layers.step_inputs import StepInputs

CPU = torch.device("cpu")
ROWS, COLUMNS = 8, 32


def _require_batch(inputs: StepInputs, batch: Batch) -> None:
    count = len(batch.ids)
    assert inputs.tokens.tolist() == [*batch.ids] + [0] * (ROWS - count)
    assert inputs.places.tolist()[count:] == [-1] * (ROWS - count)
    assert inputs.steps.lengths.tolist()[count:] == [1] * (ROWS - count)
    assert not inputs.steps.pages[count:].any()
    for span in batch.spans:
        pages, ends = span.sequence.pages, range(span.start + 1, span.end + 1)
        assert inputs.positions[span.rows].tolist() == [*range(span.start, span.end)]
        assert inputs.steps.lengths[span.rows].tolist() == [*ends]
        assert inputs.places[span.rows].tolist() == span.sequence.places(span.start, span.end)
        assert inputs.slots[span.rows].tolist() == [span.sequence.slot] * span.count
        assert inputs.steps.pages[span.rows, : len(pages)].tolist() == [pages] * span.count


def test_sequences_come_go_and_grow() -> None:
    books = PageBooks(pages=96, page_tokens=PAGE_TOKENS, slots=6)
    inputs, dice = StepInputs(ROWS, COLUMNS, CPU), random.Random(5)
    sequences: list[CachedSequence] = []
    for _ in range(400):
        while len(sequences) < 3 or (len(sequences) < 6 and dice.random() < 0.3):
            sequences.append(books.open())
        pieces: list[Piece] = []
        for sequence in dice.sample(sequences, dice.randint(1, 3)):
            tokens = [dice.randrange(1, 90) for _ in range(dice.choice([1, 1, 2]))]
            pieces.append(Piece(sequence=sequence, tokens=tokens, outputs=len(tokens)))
        batch = Batch.of(pieces)
        inputs.fill(batch)
        _require_batch(inputs, batch)
        for span in batch.spans:
            span.sequence.length = span.end + dice.choice([0, 0, 9])
            span.sequence.reserve(span.sequence.length)
        for sequence in [one for one in sequences if one.length > 200 or dice.random() < 0.02]:
            sequence.close()
            sequences.remove(sequence)


def test_tokens_may_be_on_the_device_already() -> None:
    books = PageBooks(pages=8, page_tokens=PAGE_TOKENS, slots=2)
    inputs = StepInputs(ROWS, COLUMNS, CPU)
    batch = Batch.of([Piece(sequence=books.open(), tokens=[0]) for _ in range(2)])
    inputs.fill(batch, torch.tensor([7.0, 9.0], dtype=torch.float64))
    assert inputs.tokens.tolist() == [7, 9] + [0] * (ROWS - 2)
