"""Where the bytes of a load are: before it for an estimate, and while it runs for what it teaches.

The page cache is asked about a few dozen windows spread over what is to be read, which takes
microseconds whatever the size of the files, and is off by a window or two in the worst case.
"""

from __future__ import annotations

from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

from sllm_store.server.estimate import CACHE, CPU, DEVICE, DISK, HOST, Demand
from sllm_store.server.shared import arena_key
from sllm_store.tiers.device import device_ordinal
from sllm_store.tiers.transfer import open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.native import File, TransferReport
    from sllm_store.server.catalog import Entry, PlannedLoad
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
    mapped = shared
    for device, arena in zip(planned.plan.devices, planned.plan.arenas, strict=True):
        if device == CPU:
            wanted.update(range(entry.chunked.chunks_total))
            mapped = False
            continue
        device_ordinal(device)
        resident = devices.gpus_with(arena_key(planned, device, arena))
        if shared and device in resident:
            continue
        mapped = False
        gpus[device] = _stored_bytes(arena)
        if resident:
            sources[DEVICE] = sources.get(DEVICE, 0) + gpus[device]
        else:
            wanted |= _chunks_of(arena, entry.chunked.chunk_bytes)
    for source, size_bytes in _through_host(entry, host, wanted).items():
        sources[source] = size_bytes
    return Demand(
        model=entry.name,
        sources=sources,
        gpus=gpus,
        tensors=len(planned.plan.tensors),
        coded=entry.checkpoint.is_compressed,
        mapped=mapped,
    )


def describe_transfer(
    entry: Entry,
    plan: TransferPlan,
    files: Sequence[File],
    targets: Sequence[Target],
    uuid_of: Callable[[int], str],
) -> Demand:
    """Return what a transfer is about to move; without files, its bytes are on GPUs already."""
    gpus: dict[str, int] = {}
    for index, target in enumerate(targets):
        if target.device >= 0:
            copied = sum(copy[3] for copy in plan.copies if copy[1] == index)
            decoded = sum(decode[4] for decode in plan.decodes if decode[1] == index)
            gpu = uuid_of(target.device)
            gpus[gpu] = gpus.get(gpu, 0) + copied + decoded
    sources: dict[str, int] = {}
    read = sum(map(_SIZE, plan.reads))
    if read:
        cached = int(read * cached_part(files, plan.reads))
        sources = {CACHE: cached, DISK: read - cached}
    ready = max(sum(gpus.values()) - read, 0)
    if ready:
        sources[HOST if plan.on_host else DEVICE] = ready
    return Demand(
        model=entry.name,
        sources={source: size for source, size in sources.items() if size},
        gpus=gpus,
        tensors=len(entry.checkpoint.tensors),
        coded=entry.checkpoint.is_compressed,
    )


def moved_bytes(demand: Demand, report: TransferReport) -> dict[str, int]:
    """Return where the bytes of a finished transfer did come from.

    What was read directly came from the disk. Where nothing was, direct reads may be impossible,
    and what the page cache was seen to hold before counts.
    """
    if not report.bytes_direct:
        return dict(demand.sources)
    kept = {source: size for source, size in demand.sources.items() if source in {HOST, DEVICE}}
    return kept | {DISK: report.bytes_direct, CACHE: report.bytes_buffered}


def cached_part(files: Sequence[File], reads: Sequence[tuple[int, int, int, int, int]]) -> float:
    """Return which part of the reads the page cache holds, from windows spread over them."""
    ends = list(accumulate(map(_SIZE, reads)))
    asked = held = 0
    index = 0
    for window in range(WINDOWS):
        place = (2 * window + 1) * ends[-1] // (2 * WINDOWS)
        while ends[index] <= place:
            index += 1
        _, file, offset, size, _ = reads[index]
        start = offset + place - (ends[index] - size)
        length = min(WINDOW_BYTES, offset + size - start)
        asked += length
        held += files[file].resident_bytes(start, length)
    return min(held / asked, 1.0) if asked else 0.0


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
    reads = [(chunk, *read) for chunk in missing for read in chunked.reads[chunk]]
    if reads:
        read = sum(map(_SIZE, reads))
        cached = int(read * cached_part(open_files(entry.checkpoint), reads))
        sources |= {CACHE: cached, DISK: read - cached}
    return {source: size for source, size in sources.items() if size}


def _stored_bytes(arena: Arena) -> int:
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
