"""A client's host arena: chunks of the pool, mapped, or decoded to memory of its own.

The image is read once and each tensor written once, by all processors: decoding bounds it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.layout import Arena, Decode, Piece
from sllm_store.tiers.transfer import HOST_DEVICE, Moves, Target, TransferPlan, run_plan
from sllm_store.tiers.watching import run_watched, shifted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sllm_store.proto import storage_pb2 as pb
    from sllm_store.tiers.held import HeldMemory
    from sllm_store.tiers.watching import OnProgress

THREADS_MAX = 64


def with_decoding(on_progress: OnProgress | None, arenas: Iterable[pb.Arena]) -> OnProgress | None:
    """Count what map_host will decode among the bytes in all."""
    return shifted(on_progress, total=sum(arena.decoding.raw_bytes for arena in arenas))


def map_host(
    held: HeldMemory, done: pb.LoadEvent, arena: pb.Arena, on_progress: OnProgress | None
) -> native.PoolMapping | native.HostBuffer:
    """Map a host arena; what is compressed is decoded to memory of its own, and let go."""
    chunks = done.chunk_size, list(done.chunks)
    if not arena.HasField("decoding"):
        return held.map_pool(*chunks, arena.size_bytes)
    image = held.map_pool(*chunks, arena.decoding.image_bytes)
    try:
        return decode_image(
            image.address,
            _arena(arena),
            on_progress=shifted(on_progress, total=done.bytes_total, done=done.bytes_total),
        )
    finally:
        del image  # And with it the hold, even while somebody looks at an exception's frames.


def decode_image(
    address: int,
    arena: Arena,
    *,
    on_progress: OnProgress | None = None,
) -> native.HostBuffer:
    """Return a host arena made out of the image at `address`, which is not needed afterwards.

    Raises ChecksumError if a segment is corrupt.
    """
    memory = native.HostBuffer(arena.size_bytes)
    target = Target(
        device=HOST_DEVICE, address=memory.address, pieces=arena.pieces, decodes=arena.decodes
    )
    moves = Moves(
        [(0, piece.arena_offset, piece.size_bytes, piece.image_offset) for piece in arena.pieces],
        [
            (0, decode.arena_offset, decode.raw_bytes, decode.stored_bytes, decode.image_offset)
            for decode in arena.decodes
        ],
    )
    plan = TransferPlan()
    plan.add(address, moves=moves)
    control = native.Control()
    run_watched(
        lambda beside: run_plan(
            plan,
            [],
            [target],
            mode="buffered",
            threads=min(os.cpu_count() or 1, THREADS_MAX),
            control=control,
            beside=beside,
        ),
        control,
        bytes_total=plan.bytes_total,
        timeout_s=None,
        on_progress=on_progress,
    )
    return memory


def _arena(arena: pb.Arena) -> Arena:
    """Return what has to be copied and decoded for an arena."""
    copied, coded = list(arena.decoding.pieces), list(arena.decoding.decodes)
    return Arena(
        size_bytes=arena.size_bytes,
        offsets={},
        pieces=tuple(map(Piece, copied[::3], copied[1::3], copied[2::3])),
        decodes=tuple(map(Decode, coded[::4], coded[1::4], coded[2::4], coded[3::4])),
    )
