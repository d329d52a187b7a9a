"""Who has which pages: the books of the KV cache, and one sequence's part of it. No tensors.

A sequence takes pages as it grows, and one slot for the states of layers that are not attention.
Admission asks `pages_free` and `slots_free` first; whoever gets CacheFullError has lost nothing.
"""

from __future__ import annotations

from sllm.core.errors import CacheFullError
from sllm_store.units import div_ceil


class PageBooks:
    """All pages and slots, free or in use. A freed page is the next to be given: it is warm."""

    def __init__(self, *, pages: int, page_tokens: int, slots: int) -> None:
        assert pages > 0
        assert page_tokens > 0
        assert slots > 0
        self.page_tokens = page_tokens
        self._pages = list(reversed(range(pages)))
        self._slots = list(reversed(range(slots)))
        self._pages_total = pages
        self._slots_total = slots

    @property
    def pages_free(self) -> int:
        """Pages that no sequence has."""
        return len(self._pages)

    @property
    def slots_free(self) -> int:
        """Sequences that may still be opened."""
        return len(self._slots)

    def pages_for(self, tokens: int) -> int:
        """Return how many pages a sequence of that many tokens takes."""
        return div_ceil(tokens, self.page_tokens)

    def open(self) -> CachedSequence:
        """Return an empty sequence; raise CacheFullError if all slots are taken."""
        if not self._slots:
            raise CacheFullError(
                f"all {self._slots_total} sequences of the cache are in use: wait for a request "
                "to end"
            )
        return CachedSequence(self, self._slots.pop())

    def take(self, count: int) -> list[int]:
        """Return that many pages, or raise CacheFullError and take none."""
        if count > len(self._pages):
            raise CacheFullError(
                f"{count} more pages of {self.page_tokens} tokens are needed, and "
                f"{len(self._pages)} of {self._pages_total} are free: wait for a request to end"
            )
        return [self._pages.pop() for _ in range(count)]

    def give_back(self, pages: list[int], slot: int) -> None:
        """Free a sequence's pages and its slot."""
        assert slot not in self._slots, "a slot is given back once"
        self._pages.extend(reversed(pages))
        self._slots.append(slot)
        assert len(self._pages) <= self._pages_total, "a page is given back once"


class CachedSequence:
    """One sequence's place in the cache. `length` counts the tokens that were computed."""

    def __init__(self, books: PageBooks, slot: int) -> None:
        self.slot = slot
        self.length = 0
        self.pages: list[int] = []
        self._books = books
        self._open = True

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens in all; raise CacheFullError if there is none."""
        assert self._open, "a closed sequence has no room"
        missing = self._books.pages_for(tokens) - len(self.pages)
        if missing > 0:
            self.pages.extend(self._books.take(missing))

    def places(self, start: int, end: int) -> list[int]:
        """Return where the tokens from `start` to `end` are, in tokens from the cache's start."""
        size = self._books.page_tokens
        assert end <= len(self.pages) * size, "room is reserved before it is used"
        return [
            self.pages[position // size] * size + position % size for position in range(start, end)
        ]

    def close(self) -> None:
        """Give everything back. A second call does nothing."""
        if self._open:
            self._open = False
            self._books.give_back(self.pages, self.slot)
            self.pages = []
