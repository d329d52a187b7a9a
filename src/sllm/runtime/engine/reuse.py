"""Reuse: what requests have in common is computed once.

A chat sends all of its history each turn, and many prompts begin alike. What a request has in the
cache is found by whoever begins the same way, while it runs and after it ended, for as long as
nobody needs the room. At least one token is computed, since its logits are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.cache.sequence import CachedSequence, PageBooks
    from sllm.runtime.engine.active import ActiveRequest


class Reuse:
    """Finds what the cache has of a request, and has it know what a request computed."""

    def __init__(self, books: PageBooks) -> None:
        self._books = books

    def open(self, request: ActiveRequest, tokens: int) -> CachedSequence | None:
        """Return a request's place, with room for so many tokens; None if there is none yet."""
        found = self._books.find(self._names(request)[: (len(request.ids) - 1) // self._size])
        if not self._books.has_room(tokens, found):
            return None
        sequence = self._books.open(found)
        sequence.reserve(tokens)
        return sequence

    def note(self, request: ActiveRequest) -> None:
        """Have the cache know what a request has computed. What was drawn from it is known."""
        if request.sequence is not None and self._books.shares:
            request.sequence.note(self._names(request))

    @property
    def _size(self) -> int:
        return self._books.page_tokens

    def _names(self, request: ActiveRequest) -> Sequence[bytes]:
        return request.chain.names(request.ids, self._size) if self._books.shares else ()
