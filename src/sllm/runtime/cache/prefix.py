"""What whole pages hold, so that a sequence that begins the same way need not compute them again.

A page's name is a hash of its tokens and of the name before it, so it says all that its keys and
values depend on; a chain of names is looked up from its beginning (as vLLM does: docs.vllm.ai,
"Automatic Prefix Caching"). Names are SHA-256, so two that are equal mean equal tokens.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PageChain:
    """The names of one sequence's whole pages, worked out as it grows."""

    def __init__(self) -> None:
        self._names: list[bytes] = []

    def names(self, ids: Sequence[int], page_tokens: int) -> Sequence[bytes]:
        """Return a name for each whole page of some ids, which are those of before or more."""
        for start in range(len(self._names) * page_tokens, len(ids), page_tokens):
            tokens = ids[start : start + page_tokens]
            if len(tokens) == page_tokens:
                before = self._names[-1] if self._names else b""
                self._names.append(sha256(before + array("q", tokens).tobytes()).digest())
        return self._names


class KnownPages:
    """Which page holds what, and the pages that nobody uses, those first that go first.

    A page is known under one name at most, and a name of one page.
    """

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def unused(self) -> int:
        """How many known pages nobody uses."""
        return len(self._unused)

    def __contains__(self, page: int) -> bool:
        return page in self._names

    def is_unused(self, page: int) -> bool:
        """Whether a page is known and nobody uses it."""
        return page in self._unused

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Return the pages of the first names, as far as they are known without a gap."""
        pages: list[int] = []
        for name in names:
            page = self._pages.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def note(self, page: int, name: bytes) -> None:
        """Take note of what a page that is in use holds, unless another page holds it as well."""
        assert page not in self._names, "what a page holds does not change while it is in use"
        if name not in self._pages:
            self._pages[name] = page
            self._names[page] = name

    def forget(self, page: int) -> None:
        """Forget what a page holds, if it is known."""
        name = self._names.pop(page, None)
        if name is not None:
            del self._pages[name]
            self._unused.pop(page, None)

    def use(self, page: int) -> None:
        """Take note that somebody uses a known page."""
        self._unused.pop(page, None)

    def disuse(self, page: int) -> None:
        """Take note that nobody uses a known page any longer."""
        assert page in self._names
        self._unused[page] = None

    def evict(self) -> int:
        """Forget the page that nobody has used for the longest time, and return it."""
        page = next(iter(self._unused))
        self.forget(page)
        return page
