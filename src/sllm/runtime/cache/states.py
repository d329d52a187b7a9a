"""Spare states: copies of what layers that keep no tokens remember of a sequence. No tensors.

A state cannot be cut where a guess was wrong or a prompt ends, so it is copied there: to go back
to, and to begin another sequence with, by the name of the last page before it. Copies that have a
name stay until their slot is needed; the one that nobody has used for the longest time goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A copy of a sequence's state after so many of its tokens, in a spare slot."""

    position: int
    slot: int


class SpareStates:
    """Slots for copies, and the copies that are to be made before the next pass, in order."""

    def __init__(self, slots: Iterable[int]) -> None:
        self._free = list(slots)
        self._named: OrderedDict[bytes, int] = OrderedDict()
        self._copies: list[tuple[int, int]] = []

    def take(self) -> int | None:
        """Return a slot, perhaps of a copy with a name; None if all are in use."""
        if self._free:
            return self._free.pop()
        return self._named.popitem(last=False)[1] if self._named else None

    def give_back(self, slot: int) -> None:
        """Free a slot that was taken."""
        assert slot not in self._free, "a slot is given back once"
        self._free.append(slot)

    def copy(self, source: int, target: int) -> None:
        """Have a state copied before the next pass, after the copies that were asked for before."""
        self._copies.append((source, target))

    def copies(self) -> list[tuple[int, int]]:
        """Return the copies that are to be made now, which are then no longer asked for."""
        copies, self._copies = self._copies, []
        return copies

    def keep(self, slot: int, name: bytes) -> None:
        """Keep the copy in a slot that was taken under a name; a second one of a name is freed."""
        if name in self._named:
            self.give_back(slot)
        else:
            self._named[name] = slot

    def drop(self, name: bytes) -> None:
        """Free the copy of a name, if there is one."""
        slot = self._named.pop(name, None)
        if slot is not None:
            self.give_back(slot)

    def __contains__(self, name: bytes) -> bool:
        return name in self._named

    def reach(self, names: Sequence[bytes]) -> int:
        """Return how many of the first names end with one that has a copy; 0 if none has."""
        for count in range(len(names), 0, -1):
            if names[count - 1] in self._named:
                return count
        return 0

    def restore(self, name: bytes, slot: int) -> None:
        """Have a sequence go on from the copy of a name."""
        self._named.move_to_end(name)
        self.copy(self._named[name], slot)
