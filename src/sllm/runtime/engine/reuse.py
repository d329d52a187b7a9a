"""Reuse: what requests have in common is computed once.

A chat sends all of its history each turn, and many prompts begin alike. What a request has in the
cache is found by whoever begins the same way, while it runs and after it ended, for as long as
nobody needs the room. At least one token is computed, since its logits are wanted.

States are copied where a page ends: of a prompt the last such place, of an answer the latest that
a pass ended at. Whoever begins the same way goes on from a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.cache.sequence import CachedSequence, PageBooks
    from sllm.runtime.cache.states import SpareStates
    from sllm.runtime.engine.active import ActiveRequest


class Reuse:
    """Finds what the cache has of a request, and has it know what a request computed."""

    def __init__(self, books: PageBooks) -> None:
        self._books = books

    def open(self, request: ActiveRequest, tokens: int) -> CachedSequence | None:
        """Return a request's place, with room for so many tokens; None if there is none yet."""
        names = self._names(request)[: self._last_pages(request)]
        if request.unreported:
            names = ()  # What is reported of a token comes with computing the one before it.
        found = self._books.find(names)
        states = self._books.states
        if states is not None:
            found = found[: states.reach(names[: len(found)])]
        if not self._books.has_room(tokens, found):
            return None
        sequence = self._books.open(found)
        sequence.reserve(tokens)
        if states is not None and found:
            states.restore(names[len(found) - 1], sequence.slot)
        return sequence

    def mark(self, request: ActiveRequest, tokens: int) -> None:
        """Have the state copied at the end of a request's pages, if so many tokens go past it."""
        sequence, position = request.sequence, self._last_pages(request) * self._books.page_tokens
        assert sequence is not None
        if self._books.shares and sequence.length < position < sequence.length + tokens:
            sequence.save_at(position)

    def note(self, request: ActiveRequest) -> None:
        """Have the cache know what a request has computed. What was drawn from it is known."""
        sequence, states = request.sequence, self._books.states
        if sequence is None or not self._books.shares or (states is None and sequence.is_noted):
            return
        names = self._names(request)
        sequence.note(names)
        if states is not None:
            self._note_saved(sequence, states, names)
            self._note_reached(request, sequence, states)

    def _note_saved(
        self, sequence: CachedSequence, states: SpareStates, names: Sequence[bytes]
    ) -> None:
        """Keep the copy that a pass made, if a page ends there."""
        saved = sequence.take_saved()
        if saved is None:
            return
        pages, rest = divmod(saved.position, self._books.page_tokens)
        if rest or saved.position > sequence.length:
            states.give_back(saved.slot)
        else:
            states.keep(saved.slot, names[pages - 1])

    def _note_reached(
        self, request: ActiveRequest, sequence: CachedSequence, states: SpareStates
    ) -> None:
        """Copy the state if the last of a request's pages ends where it is now."""
        pages = self._last_pages(request)
        if pages == 0 or sequence.length != pages * self._books.page_tokens:
            return
        name = self._names(request)[pages - 1]
        if name in states or (slot := states.take()) is None:
            return
        states.copy(sequence.slot, slot)
        states.keep(slot, name)
        if sequence.length >= len(request.request.prompt):
            if request.latest is not None:
                states.drop(request.latest)
            request.latest = name

    def _last_pages(self, request: ActiveRequest) -> int:
        """Return how many whole pages come before a request's last token."""
        return (len(request.ids) - 1) // self._books.page_tokens

    def _names(self, request: ActiveRequest) -> Sequence[bytes]:
        if not self._books.shares:
            return ()
        return request.chain.names(request.ids, self._books.page_tokens)
