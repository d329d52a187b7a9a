"""The steps of a load through a ring: where a chunk lands in its slot, and whom it waits for.

A disk that is read directly writes whole blocks to memory that fits them. In published files
tensors begin wherever the header ends, so a chunk that comes from the disk is moved within its slot
by what its place in the file lacks, and read with the blocks that it begins and ends in: nothing
has to be copied once more to be where it belongs, which took one core as long as the disk.

What the page cache has waits for no disk: it passes through slots of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.tiers.transfer import Moves, TransferPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.native import File
    from sllm_store.tiers.transfer import ChunkedImage

BLOCK_BYTES = 4096
# What a slot has beyond a chunk: a block's rest before it, and one after it.
ROOM_BYTES = 2 * BLOCK_BYTES
_WINDOW_BYTES = 64 << 10
_ASKED = 32

Read = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Memory in slots, each for one chunk and ROOM_BYTES."""

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
    cold = [_is_cold(chunked.reads[chunk], files) for chunk in asked]
    if all(cold):
        return frozenset(read)
    if not any(cold):
        return frozenset()
    return frozenset(chunk for chunk in read if _is_cold(chunked.reads[chunk], files))


def plan_ring(
    chunked: ChunkedImage,
    moves: Sequence[Moves],
    ring: Ring,
    *,
    files: Sequence[File],
    cold: frozenset[int],
) -> TransferPlan:
    """Read every chunk that goes anywhere once, through the ring."""
    transfer = TransferPlan()
    moved = [chunk for chunk, wanted in enumerate(moves) if wanted.is_any]
    chains = _chains(ring, apart=len({chunk in cold for chunk in moved}) > 1)
    used = {True: 0, False: 0}
    for chunk in moved:
        is_cold = chunk in cold
        chain = chains[is_cold]
        slot = used[is_cold] % len(chain)
        used[is_cold] += 1
        reads: Sequence[Read] = chunked.reads[chunk]
        wanted = moves[chunk]
        if is_cold and not wanted.decodes:
            reads, wanted = fit_blocks(reads, wanted, files)
        address, after = chain[slot]
        chain[slot] = address, transfer.add(address, after=after, reads=reads, moves=wanted)
    return transfer


def fit_blocks(
    reads: Sequence[Read], moves: Moves, files: Sequence[File]
) -> tuple[Sequence[Read], Moves]:
    """Move a chunk within its slot so that its reads land as the disk has them, if one way fits."""
    shifts = {(file_offset - offset) % BLOCK_BYTES for _, file_offset, _, offset in reads}
    if len(shifts) != 1:
        return reads, moves
    (shift,) = shifts
    copies = [(target, into, size, at + shift) for target, into, size, at in moves.copies]
    shifted = [(file, start, size, at + shift) for file, start, size, at in reads]
    if len(shifted) == 1:  # Of several, one's blocks could have bytes of another.
        shifted = [_whole_blocks(shifted[0], files[shifted[0][0]].size)]
    return shifted, Moves(copies, moves.decodes)


def _whole_blocks(read: Read, file_bytes: int) -> Read:
    file, start, size, at = read
    head = start % BLOCK_BYTES
    end = min(-(-(start + size) // BLOCK_BYTES) * BLOCK_BYTES, file_bytes)
    return file, start - head, end - start + head, at - head


def _chains(ring: Ring, *, apart: bool) -> dict[bool, list[tuple[int, int]]]:
    """Return the slots of cold chunks and of others: (address, last step in it)."""
    slots = [(ring.address + slot * ring.slot_bytes, -1) for slot in range(ring.slots)]
    if not apart or len(slots) < 2:
        return {True: slots, False: slots}
    half = len(slots) // 2
    return {True: slots[:half], False: slots[half:]}


def _is_cold(reads: Sequence[Read], files: Sequence[File]) -> bool:
    file, start, size, _ = max(reads, key=lambda read: read[2])
    length = min(size, _WINDOW_BYTES)
    return 2 * files[file].resident_bytes(start + (size - length) // 2, length) < length
