"""Who has which pages: the books of the KV cache, and one sequence's part of it. No tensors.

A sequence takes pages as it grows, and one slot for the states of layers that are not attention.
Admission asks `pages_free` and `slots_free` first; whoever gets CacheFullError has lost nothing.
What a whole page holds is known beyond the sequence that computed it: another one that begins with
the same tokens has the page as well, and a known page that nobody uses is as good as free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.core.errors import CacheFullError
from sllm.runtime.cache.prefix import KnownPages
from sllm.runtime.cache.states import Saved
from sllm_store.units import div_ceil

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.cache.states import SpareStates


class PageBooks:
    """All pages and slots, free or in use. A freed page is the next to be given: it is warm.

    shares: whether what a page holds depends on its tokens and those before them alone. states:
    copies of the states of layers that are not attention; None if there are no such layers.
    """

    def __init__(
        self,
        *,
        pages: int,
        page_tokens: int,
        slots: int,
        shares: bool = True,
        states: SpareStates | None = None,
    ) -> None:
        assert pages > 0
        assert page_tokens > 0
        assert slots > 0
        self.page_tokens = page_tokens
        self.shares = shares
        self.states = states
        self._pages = list(reversed(range(pages)))
        self._users = [0] * pages
        self._known = KnownPages()
        self._slots = list(reversed(range(slots)))
        self._slots_total = slots

    @property
    def pages_free(self) -> int:
        """Pages that no sequence has."""
        return len(self._pages) + self._known.unused

    @property
    def slots_free(self) -> int:
        """Sequences that may still be opened."""
        return len(self._slots)

    def pages_for(self, tokens: int) -> int:
        """Return how many pages a sequence of that many tokens takes."""
        return div_ceil(tokens, self.page_tokens)

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Return the pages that hold the beginning of a chain, to open a sequence with."""
        return self._known.find(names)

    def has_room(self, tokens: int, found: Sequence[int]) -> bool:
        """Whether a sequence of so many tokens can be opened that begins with known pages."""
        unused = sum(self._known.is_unused(page) for page in found)
        missing = self.pages_for(tokens) - len(found)
        return bool(self._slots) and missing <= self.pages_free - unused

    def open(self, found: Sequence[int] = ()) -> CachedSequence:
        """Return a sequence of the tokens of known pages, which may be none.

        Raises CacheFullError if all slots are taken.
        """
        if not self._slots:
            raise CacheFullError(
                f"all {self._slots_total} sequences of the cache are in use: wait for a request "
                "to end"
            )
        for page in found:
            self._users[page] += 1
            self._known.use(page)
        return CachedSequence(self, self._slots.pop(), found)

    def take(self, count: int) -> list[int]:
        """Return that many pages, or raise CacheFullError and take none."""
        if count > self.pages_free:
            raise CacheFullError(
                f"{count} more pages of {self.page_tokens} tokens are needed, and "
                f"{self.pages_free} of {len(self._users)} are free: wait for a request to end"
            )
        taken = [self._pages.pop() if self._pages else self._known.evict() for _ in range(count)]
        for page in taken:
            self._users[page] += 1
            assert self._users[page] == 1, "a page that is taken has no other user"
        return taken

    def note(self, page: int, name: bytes) -> None:
        """Take note of what a page holds from now on, for whoever begins the same way."""
        if self.shares:
            self._known.note(page, name)

    def forget(self, pages: Sequence[int]) -> None:
        """Forget what pages in use hold: nobody gets them but who has them."""
        for page in pages:
            self._known.forget(page)

    def give_back(self, pages: list[int], slot: int) -> None:
        """Free a sequence's pages and its slot. Of known pages, the last ones go first."""
        assert slot not in self._slots, "a slot is given back once"
        self._slots.append(slot)
        for page in reversed(pages):
            self._users[page] -= 1
            assert self._users[page] >= 0, "a page is given back once"
            if self._users[page]:
                continue
            if page in self._known:
                self._known.disuse(page)
            else:
                self._pages.append(page)


class CachedSequence:
    """One sequence's place in the cache. `length` counts the tokens that were computed.

    saved: where in the next pass its state is copied, or was in the last one. again: tokens before
    the next new one that are computed a second time, since their states were taken back.
    """

    def __init__(self, books: PageBooks, slot: int, found: Sequence[int] = ()) -> None:
        self.slot = slot
        self.length = len(found) * books.page_tokens
        self.pages = list(found)
        self.saved: Saved | None = None
        self.again = 0
        self._books = books
        self._noted = len(found)  # Pages whose tokens the books were told.
        self._open = True

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens in all; raise CacheFullError if there is none."""
        assert self._open, "a closed sequence has no room"
        missing = self._books.pages_for(tokens) - len(self.pages)
        if missing > 0:
            self.pages.extend(self._books.take(missing))

    def save_at(self, position: int) -> bool:
        """Have its state copied in the next pass, which has tokens before and after a position.

        Returns whether it will be: False if there are no states, or no slot for one.
        """
        states = self._books.states
        slot = None if states is None or self.saved is not None else states.take()
        if slot is None:
            return False
        self.saved = Saved(position=position, slot=slot)
        return True

    def can_take_back(self, position: int) -> bool:
        """Whether tokens of the next pass after a position can be taken back; sees to it."""
        return self._books.states is None or self.save_at(position)

    def settle(self, length: int) -> None:
        """Keep so many of the tokens that were computed; those after them were wrong guesses.

        A state goes back to where it was saved, and tokens after that are computed again.
        """
        assert length <= self.length
        self.again = 0
        states = self._books.states
        if states is not None and length < self.length:
            assert self.saved is not None, "a state is saved before guesses"
            assert self.saved.position <= length
            states.copy(self.saved.slot, self.slot)
            self.again = length - self.saved.position
        self.length = length - self.again

    @property
    def is_noted(self) -> bool:
        """Whether the books know all pages that are whole by now."""
        return self._noted * self._books.page_tokens + self._books.page_tokens > self.length

    def note(self, names: Sequence[bytes]) -> None:
        """Have the books know the pages that are whole by now. What they hold stays as it is."""
        whole = self.length // self._books.page_tokens
        for place in range(self._noted, whole):
            self._books.note(self.pages[place], names[place])
        self._noted = max(self._noted, whole)

    def take_saved(self) -> Saved | None:
        """Return the copy of its state that the last pass made; its slot is the caller's."""
        saved, self.saved = self.saved, None
        return saved

    def forget(self) -> None:
        """Have the books forget its pages: what they hold may be wrong."""
        self._books.forget(self.pages)

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
            if self.saved is not None and self._books.states is not None:
                self._books.states.give_back(self.saved.slot)
            self._books.give_back(self.pages, self.slot)
            self.pages = []
