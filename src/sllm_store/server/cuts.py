"""What chunks of an image have for targets, worked out once for all loads of a plan.

A compressed model of 16 GB has 15,000 segments. To cut them into chunks and to number them for a
transfer takes 14 ms, in which four links bring 2 GB.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.tiers.ring_steps import take_turns
from sllm_store.tiers.transfer import TransferPlan, cut_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.tiers.transfer import ChunkedImage, Moves, Target

CUTS_MAX = 8
# Of all cuts together; one takes about 400 bytes.
MOVES_MAX = 1 << 17

_Copies = list[tuple[int, int, int, int, int]]
_Decodes = list[tuple[int, int, int, int, int, int]]


class Cut:
    """What each chunk gives to targets; `turns` has the chunks that give anything, in turn."""

    def __init__(self, moves: list[Moves]) -> None:
        """Number what all chunks give: mostly the pool has them all."""
        self.moves = moves
        self.moves_total = sum(len(kind) for found in moves for kind in found)
        self.wanted = [chunk for chunk, found in enumerate(moves) if found.is_any]
        self.turns = take_turns(self.wanted, moves)
        self._numbered = self._number(self.turns)

    def plan(self, addresses: Sequence[int], chunks: list[int]) -> TransferPlan:
        """Return the steps of a transfer out of chunks that are at these addresses.

        What is numbered for them is kept for who asks for the same chunks next, so it is copied.
        """
        known = self._numbered
        if known[0] != chunks:
            known = self._numbered = self._number(chunks)
        return TransferPlan(
            steps=[(address, -1) for address in addresses],
            copies=list(known[1]),
            decodes=list(known[2]),
        )

    def _number(self, chunks: list[int]) -> tuple[list[int], _Copies, _Decodes]:
        plan = TransferPlan()
        for chunk in chunks:
            plan.add(0, moves=self.moves[chunk])
        return chunks, plan.copies, plan.decodes


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """Targets, and what each chunk of an image has for them."""

    targets: Sequence[Target]
    cut: Cut


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    chunked: ChunkedImage
    arenas: tuple[Arena, ...]
    cut: Cut

    def is_of(self, chunked: ChunkedImage, arenas: Sequence[Arena | None]) -> bool:
        same = len(arenas) == len(self.arenas) and chunked is self.chunked
        return same and all(a is b for a, b in zip(arenas, self.arenas, strict=True))


class Cuts:
    """The cuts that were asked for last. Thread-safe."""

    def __init__(self) -> None:
        """Keep none yet."""
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()

    def deliver(self, targets: Sequence[Target], chunked: ChunkedImage) -> Delivery:
        """Return what an image has for targets; of those with arenas it is known from last time."""
        arenas = [target.arena for target in targets]
        return Delivery(targets, self._cut(targets, arenas, chunked))

    def prepare(self, arenas: Sequence[Arena], chunked: ChunkedImage) -> None:
        """Work out what an image has for arenas that are about to be loaded."""
        self._cut(arenas, arenas, chunked)

    def _cut(
        self,
        targets: Sequence[Target | Arena],
        arenas: Sequence[Arena | None],
        chunked: ChunkedImage,
    ) -> Cut:
        # The lock is held all along: who wants a cut that is being made shall not make it too.
        with self._lock:
            for place, kept in enumerate(self._kept):
                if kept.is_of(chunked, arenas):
                    self._kept.append(self._kept.pop(place))
                    return kept.cut
            cut = Cut(cut_targets(targets, chunked))
            known = tuple(arena for arena in arenas if arena is not None)
            if len(known) == len(arenas) and cut.moves_total <= MOVES_MAX:
                self._kept.append(_Kept(chunked, known, cut))
                while len(self._kept) > CUTS_MAX or self._moves() > MOVES_MAX:
                    del self._kept[0]
        return cut

    def _moves(self) -> int:
        return sum(kept.cut.moves_total for kept in self._kept)
