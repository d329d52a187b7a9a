"""Draft: a small model that guesses for a large one of the same vocabulary.

Requests that begin alike share what it computed of that, as they do in the large model's cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm.core.errors import CacheFullError, UnsupportedModelError
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.config.model import AttentionConfig
from sllm.runtime.engine.guesses import takes_back
from sllm.runtime.peaks import ask_tokens
from sllm.runtime.sampler import draw_rest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.cache.sequence import CachedSequence
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.decoder import Decoder
    from sllm.runtime.engine.active import ActiveRequest


@dataclass(slots=True)
class _Place:
    """A request in the draft's cache: how many ids it had when it was last guessed for, and what
    was guessed.
    """

    sequence: CachedSequence
    length: int = 0
    guesses: list[int] = field(default_factory=list)

    def take_back(self, ids: Sequence[int]) -> None:
        """Forget guesses that were wrong, and the last id, which is computed again."""
        right = self.length
        for guess, came in zip(self.guesses, ids[self.length :], strict=False):
            if guess != came:
                break
            right += 1
        self.sequence.length = min(self.sequence.length, right, len(ids) - 1)


class Draft:
    """Guesses by a model, which draws as the large one does: same parameters, same numbers."""

    def __init__(self, decoder: Decoder, memory: CacheMemory, *, pass_tokens: int) -> None:
        self._decoder = decoder
        self._memory = memory
        self._pass_tokens = pass_tokens
        self._places: dict[ActiveRequest, _Place] = {}

    def guess(self, requests: Sequence[ActiveRequest], counts: Sequence[int]) -> list[list[int]]:
        """Return a guess for each request that the draft's context and cache have room for."""
        for request in [known for known in self._places if known.sequence is None]:
            self._places.pop(request).sequence.close()
        guessing: list[ActiveRequest] = []
        wanted: list[int] = []
        for request, count in zip(requests, counts, strict=True):
            if self._enter(request, count):
                guessing.append(request)
                wanted.append(count)
        while guessing:
            self._extend(guessing)
            still = [
                (request, count)
                for request, count in zip(guessing, wanted, strict=True)
                if len(self._places[request].guesses) < count
            ]
            guessing, wanted = [request for request, _ in still], [count for _, count in still]
        return [
            self._places[request].guesses if request in self._places else [] for request in requests
        ]

    def _enter(self, request: ActiveRequest, count: int) -> bool:
        """Bring the cache up to the last of a request's ids; return False if there is no room."""
        tokens = len(request.ids) + count
        place = self._places.get(request)
        try:
            if place is None:
                place = self._places[request] = self._open(request)
            if tokens > self._decoder.config.context:
                raise CacheFullError("the draft's context is shorter")
            place.sequence.reserve(tokens)
        except CacheFullError:
            if place is not None:
                self._places.pop(request).sequence.close()
            return False
        place.take_back(request.ids)
        place.sequence.note(self._names(request))
        place.length, place.guesses = len(request.ids), []
        while (left := len(request.ids) - place.sequence.length) > self._pass_tokens:
            start = place.sequence.length
            tokens_now = request.ids[start : start + min(self._pass_tokens, left - 1)]
            self._forward([Piece(sequence=place.sequence, tokens=tokens_now, outputs=0)])
        return True

    def _extend(self, requests: list[ActiveRequest]) -> None:
        """Guess one more token for each request."""
        places = [self._places[request] for request in requests]
        pieces = []
        for request, place in zip(requests, places, strict=True):
            ids = [*request.ids, *place.guesses] if place.guesses else request.ids
            pieces.append(Piece(sequence=place.sequence, tokens=ids[place.sequence.length :]))
        logits = self._forward(pieces)
        pairs = [*zip(requests, places, strict=True)]
        asked = ask_tokens(logits, [one.wanted(len(place.guesses)) for one, place in pairs])
        tokens = asked.drawn
        if None in tokens:
            draws = [one.draw_after(place.guesses) for one, place in pairs]
            tokens = draw_rest(logits, draws, asked.peaks, tokens)
        for place, token in zip(places, tokens, strict=True):
            assert token is not None, "what was not drawn was asked for"
            place.guesses.append(token)

    def _open(self, request: ActiveRequest) -> _Place:
        """Return a place that begins with what the cache has of a request, but for its last id."""
        books = self._memory.books
        whole = (len(request.ids) - 1) // books.page_tokens
        sequence = books.open(books.find(self._names(request)[:whole]))
        return _Place(sequence, length=sequence.length)

    def _names(self, request: ActiveRequest) -> Sequence[bytes]:
        return request.chain.names(request.ids, self._memory.books.page_tokens)

    def _forward(self, pieces: list[Piece]) -> torch.Tensor:
        return self._decoder.forward(Batch.of(pieces, self._decoder.device), self._memory)


def check_draft(draft: ModelConfig, model: ModelConfig) -> None:
    """Raise UnsupportedModelError unless one model can guess for another."""
    if not takes_back(model):
        raise UnsupportedModelError(
            f"no draft can guess for this {model.model_type} model: what it computes for a token "
            "depends on the guesses after it, by its dynamic rope; open it without a draft"
        )
    plain = all(isinstance(layer.mixer, AttentionConfig) for layer in draft.layers)
    if not plain or not takes_back(draft):
        raise UnsupportedModelError(
            f"a {draft.model_type} model cannot be a draft: what it remembers of a token is not "
            "taken back; choose one with plain attention"
        )
    if draft.vocabulary != model.vocabulary:
        raise UnsupportedModelError(
            f"the draft has {draft.vocabulary} tokens and the model {model.vocabulary}: choose a "
            "draft of the same tokenizer"
        )
