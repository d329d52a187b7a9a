"""The steps of a load through a ring: which slot a chunk passes through, and whom it waits for.

What the page cache has waits for no disk: it passes through slots of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING

from sllm_store.native import are_resident
from sllm_store.tiers.transfer import TransferPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.native import File
    from sllm_store.tiers.transfer import ChunkedImage, Moves

_WINDOW_BYTES = 64 << 10
_ASKED = 32

Read = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Memory in slots, each for one chunk."""

    address: int
    slots: int
    slot_bytes: int


def find_cold(chunked: ChunkedImage, files: Sequence[File], mode: str) -> frozenset[int]:
    """Return the chunks that a load will read from the disk rather than from the page cache.

    The page cache is asked about a few chunks, and about all of them if those differ.
    """
    read = [chunk for chunk, reads in enumerate(chunked.reads) if reads]
    if mode in {"direct", "io_uring"}:
        return frozenset(read)
    if mode != "auto" or not read:
        return frozenset()
    asked = read[:: max(len(read) // _ASKED, 1)]
    warm = are_resident(files, [_window(chunked.reads[chunk]) for chunk in asked])
    if not any(warm):
        return frozenset(read)
    if all(warm):
        return frozenset()
    warm = are_resident(files, [_window(chunked.reads[chunk]) for chunk in read])
    return frozenset(chunk for chunk, is_warm in zip(read, warm, strict=True) if not is_warm)


def alternate(chunks: Sequence[int], cold: frozenset[int]) -> tuple[int, ...]:
    """Return chunks in turn from the disk and the page cache, each in order, then what is left.

    In a ring whose slots are used in turn each kind so has slots of its own.
    """
    kinds = [[c for c in chunks if (c in cold) is is_cold] for is_cold in (True, False)]
    both = min(map(len, kinds))
    pairs = chain.from_iterable(zip(*kinds, strict=False))
    return (*pairs, *kinds[0][both:], *kinds[1][both:])


def take_turns(chunks: Sequence[int], moves: Sequence[Moves]) -> list[int]:
    """Return chunks in turn for each target, each one's in order: no link waits for another's."""
    targets: dict[int, list[int]] = {}
    for chunk in chunks:
        targets.setdefault(moves[chunk].first_target, []).append(chunk)
    if len(targets) < 2:
        return list(chunks)
    turns = chain.from_iterable(zip_longest(*targets.values()))
    return [chunk for chunk in turns if chunk is not None]


def plan_ring(
    chunked: ChunkedImage,
    moves: Sequence[Moves],
    ring: Ring,
    *,
    cold: frozenset[int],
) -> TransferPlan:
    """Read every chunk that goes anywhere once, through the ring."""
    transfer = TransferPlan()
    moved = take_turns([chunk for chunk, wanted in enumerate(moves) if wanted.is_any], moves)
    chains = _chains(ring, apart=len({chunk in cold for chunk in moved}) > 1)
    used = {True: 0, False: 0}
    for chunk in moved:
        is_cold = chunk in cold
        slots = chains[is_cold]
        slot = used[is_cold] % len(slots)
        used[is_cold] += 1
        address, after = slots[slot]
        step = transfer.add(address, after=after, reads=chunked.reads[chunk], moves=moves[chunk])
        slots[slot] = address, step
    return transfer


def _chains(ring: Ring, *, apart: bool) -> dict[bool, list[tuple[int, int]]]:
    """Return the slots of cold chunks and of others: (address, last step in it)."""
    slots = [(ring.address + slot * ring.slot_bytes, -1) for slot in range(ring.slots)]
    if not apart or len(slots) < 2:
        return {True: slots, False: slots}
    half = len(slots) // 2
    return {True: slots[:half], False: slots[half:]}


def _window(reads: Sequence[Read]) -> tuple[int, int, int]:
    """Return a part of what a chunk reads, to tell all of it by: file, offset and size."""
    file, start, size, _ = max(reads, key=itemgetter(2))
    length = min(size, _WINDOW_BYTES)
    return file, start + (size - length) // 2, length
