"""Recurring: what is made of objects that come again, made once.

A streamed layer is read into one of a few buffers, so its tensors over each are soon known; to
describe them anew in every pass takes as long as a small layer's products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Of = TypeVar("_Of")
_Made = TypeVar("_Made")


class Recurring(Generic[_Of, _Made]):
    """Keeps objects and what was made of each; beyond `most` of them the oldest is let go."""

    def __init__(self, most: int) -> None:
        assert most > 0
        self._most = most
        self._kept: dict[int, tuple[_Of, _Made]] = {}

    def get(self, of: _Of, make: Callable[[_Of], _Made]) -> _Made:
        """Return what was made of this very object, or make it."""
        known = self._kept.get(id(of))
        if known is not None:
            return known[1]
        made = make(of)
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[id(of)] = of, made  # The object is kept, so no other has its id.
        return made
