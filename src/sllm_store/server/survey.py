"""Where the bytes of a load are: before it for an estimate, and while it runs for what it teaches.

The page cache is asked about a few dozen windows spread over what is to be read, which takes
microseconds whatever the size of the files, and is off by a window or two in the worst case.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.server.estimate import CACHE, CPU, DEVICE, DISK, HOST, Demand
from sllm_store.tiers.device import device_ordinal
from sllm_store.tiers.transfer import open_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.native import File, TransferReport
    from sllm_store.server.catalog import Entry
    from sllm_store.server.plans import PlannedLoad
    from sllm_store.tiers.host import HostTier
    from sllm_store.tiers.resident import DeviceTier
    from sllm_store.tiers.transfer import Target, TransferPlan

WINDOWS = 48
WINDOW_BYTES = 64 << 10

_SIZE = itemgetter(3)


def expect(planned: PlannedLoad, host: HostTier, devices: DeviceTier, *, shared: bool) -> Demand:
    """Return what a planned load would have to move if it started now; nothing is held.

    Raises DeviceError for a GPU that is not here.
    """
    entry = planned.entry
    gpus: dict[str, int] = {}
    sources: dict[str, int] = {}
    wanted: set[int] = set()
    if CPU in planned.plan.devices:
        wanted.update(range(entry.chunked.chunks_total))
    for key, arena in planned.shared:
        device_ordinal(key.gpu)
        resident = devices.gpus_with(key)
        if shared and key.gpu in resident:
            continue
        gpus[key.gpu] = _stored_bytes(arena)
        if resident:
            sources[DEVICE] = sources.get(DEVICE, 0) + gpus[key.gpu]
        else:
            wanted |= _chunks_of(arena, entry.chunked.chunk_bytes)
    return Demand(
        model=entry.name,
        sources=sources | _through_host(entry, host, wanted),
        gpus=gpus,
        arena_bytes=_arena_bytes(planned),
        tensors=len(planned.plan.tensors),
        coded=entry.checkpoint.is_compressed,
        decodes_on_host=planned.decodes_on_host,
        mapped=shared and not gpus and CPU not in planned.plan.devices,
    )


def calls_of(planned: PlannedLoad, *, bytes_read: int, mapped: bool) -> Demand:
    """Return what decides how long the calls of a load take that read so much of files."""
    return Demand(
        model=planned.entry.name,
        sources={DISK: bytes_read},
        gpus={gpu: arena.size_bytes for gpu, arena in planned.on_gpus},
        arena_bytes=_arena_bytes(planned),
        tensors=len(planned.plan.tensors),
        decodes_on_host=planned.decodes_on_host,
        mapped=mapped,
    )


def describe_transfer(
    entry: Entry, plan: TransferPlan, files: Sequence[File], targets: Sequence[Target]
) -> Demand:
    """Return what a transfer is about to move. What it does not read is in the host pool."""
    gpus = {
        native.device_uuid(target.device): _stored_bytes(target)
        for target in targets
        if target.device >= 0
    }
    sources: dict[str, int] = {}
    read = sum(map(_SIZE, plan.reads))
    if read:
        cached = int(read * cached_part(files, [entry[1:] for entry in plan.reads]))
        sources = {CACHE: cached, DISK: read - cached}
    sources[HOST] = max(sum(gpus.values()) - read, 0)
    return _demand(entry, sources, gpus)


def describe_copies(entry: Entry, targets: Sequence[Target]) -> Demand:
    """Return what a copy out of resident arenas is about to move."""
    gpus = {native.device_uuid(target.device): _stored_bytes(target) for target in targets}
    return _demand(entry, {DEVICE: sum(gpus.values())}, gpus)


def moved_bytes(demand: Demand, report: TransferReport) -> dict[str, int]:
    """Return where the bytes of a finished transfer did come from.

    What was read directly came from the disk. Where nothing was, direct reads may be impossible,
    and what the page cache was seen to hold before counts.
    """
    if not report.bytes_direct:
        return dict(demand.sources)
    kept = {source: size for source, size in demand.sources.items() if source in {HOST, DEVICE}}
    return kept | {DISK: report.bytes_direct, CACHE: report.bytes_buffered}


def cached_part(files: Sequence[File], reads: Sequence[tuple[int, int, int, int]]) -> float:
    """Return which part of the reads the page cache holds, from windows spread over them.

    Reads are (file, offset, size, …), as in ChunkedImage.
    """
    ends = list(accumulate(size for _, _, size, _ in reads))
    asked = held = 0
    for window in range(WINDOWS):
        place = (2 * window + 1) * ends[-1] // (2 * WINDOWS)
        index = bisect_right(ends, place)
        file, offset, size, _ = reads[index]
        start = offset + place - (ends[index] - size)
        length = min(WINDOW_BYTES, offset + size - start)
        asked += length
        held += files[file].resident_bytes(start, length)
    return min(held / asked, 1.0)


def _demand(entry: Entry, sources: Mapping[str, int], gpus: Mapping[str, int]) -> Demand:
    return Demand(
        model=entry.name,
        sources={source: size for source, size in sources.items() if size},
        gpus=gpus,
        tensors=len(entry.checkpoint.tensors),
        coded=entry.checkpoint.is_compressed,
    )


def _through_host(entry: Entry, host: HostTier, wanted: set[int]) -> dict[str, int]:
    """Return the bytes of an image's chunks by where they are: in the pool, cached, on disk."""
    if not wanted:
        return {}
    chunked = entry.chunked
    residency = host.find(entry.name)
    current = residency is not None and residency.version == entry.checkpoint.version
    chunks = list(residency.chunks) if residency is not None and current else []
    missing = sorted(c for c in wanted if c >= len(chunks) or chunks[c] is None)
    ready = len(wanted) - len(missing)
    sources = {}
    if ready:
        sources[HOST] = min(ready * chunked.chunk_bytes, chunked.image.size_bytes)
    reads = [read for chunk in missing for read in chunked.reads[chunk]]
    if reads:
        total = sum(size for _, _, size, _ in reads)
        cached = int(total * cached_part(open_files(entry.checkpoint), reads))
        sources |= {CACHE: cached, DISK: total - cached}
    return {source: size for source, size in sources.items() if size}


def _arena_bytes(planned: PlannedLoad) -> int:
    return sum(arena.size_bytes for arena in planned.plan.arenas)


def _stored_bytes(arena: Arena | Target) -> int:
    """Return what goes over a link to fill an arena."""
    copied = sum(piece.size_bytes for piece in arena.pieces)
    return copied + sum(decode.stored_bytes for decode in arena.decodes)


def _chunks_of(arena: Arena, chunk_bytes: int) -> set[int]:
    """Return the chunks of the image that an arena gets bytes from."""
    chunks = {decode.image_offset // chunk_bytes for decode in arena.decodes}
    for piece in arena.pieces:
        end = piece.image_offset + max(piece.size_bytes, 1) - 1
        chunks.update(range(piece.image_offset // chunk_bytes, end // chunk_bytes + 1))
    return chunks
