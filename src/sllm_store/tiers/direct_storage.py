"""Whether cuFile brings a disk's bytes to a GPU faster than the way through host memory.

With a direct path from the disk to the GPU it may; without one cuFile copies through host memory
itself, and loses. So it is measured, never guessed: both ways take turns at parts of the same files
that are not in the page cache, for about a second each, and the outcome is remembered per disk.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.disks import Comparison, disk_memory, disk_of
from sllm_store.tiers.device import allocate_device
from sllm_store.tiers.transfer import Moves, Target, TransferPlan, run_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_BYTES = 32 << 20
ROUND_CHUNKS = 8
WAYS = ("auto", "cufile")

Place = tuple[int, int, int]  # (file, offset, size)


def choose_mode(mode: str, files: Sequence[native.File], *, only_copies: bool) -> str:
    """Return the read mode for a load of files.

    'cufile' serves loads that do nothing but copy to GPUs (only_copies); others are read as with
    'auto'. And 'auto' means cuFile where that was measured to be faster, for files that are mostly
    not in the page cache.
    """
    if mode == "cufile":
        return mode if only_copies else "auto"
    if mode != "auto" or not only_copies or not files:
        return mode
    comparison = recall_comparison(Path(files[0].path))
    if comparison is None or not comparison.prefers_cufile or not _are_cold(files):
        return mode
    return mode if native.cufile_unavailable_reason() else "cufile"


def recall_comparison(path: Path) -> Comparison | None:
    """Return how cuFile compares on the disk that holds a path, None where nobody knows."""
    try:
        memory = disk_memory(os.environ)
        return memory.recall_comparison(memory.find(path))
    except OSError:
        return None


def compare_ways(
    files: Sequence[native.File],
    device: int,
    *,
    seconds: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Comparison | None:
    """Measure both ways to a GPU for about `seconds` each, remember the outcome and return it.

    None where cuFile is not available, or the files have less than two rounds for each way. They
    leave the page cache. Raises ReadError, DeviceError and OSError.
    """
    rounds = list(_rounds(files, chunk_bytes))
    if len(rounds) < 2 * len(WAYS) or native.cufile_unavailable_reason():
        return None
    for file in files:
        file.evict()
    reader = _RoundReader(files, device, chunk_bytes=chunk_bytes)
    spent = dict.fromkeys(WAYS, 0.0)
    moved = dict.fromkeys(WAYS, 0)
    for number, places in enumerate(rounds):
        way = WAYS[number % len(WAYS)]
        started_s = time.perf_counter()
        reader.read(places, way)
        if number < len(WAYS):
            continue  # What a way sets up when it is first used does not count.
        spent[way] += time.perf_counter() - started_s
        moved[way] += sum(size for _, _, size in places)
        if min(spent.values()) >= seconds:
            break
    by_host, by_cufile = (moved[way] / spent[way] for way in WAYS)
    comparison = Comparison(by_host=by_host, by_cufile=by_cufile)
    disk_memory(os.environ).keep_comparison(disk_of(Path(files[0].path)), comparison)
    return comparison


def _are_cold(files: Sequence[native.File]) -> bool:
    resident = sum(file.resident_bytes(0, file.size) for file in files)
    return 2 * resident < sum(file.size for file in files)


def _rounds(files: Sequence[native.File], chunk_bytes: int) -> Iterator[list[Place]]:
    """Cut files into rounds of chunks; what is left over in the end is not used."""
    places: list[Place] = []
    for number, file in enumerate(files):
        for offset in range(0, file.size - chunk_bytes + 1, chunk_bytes):
            places.append((number, offset, chunk_bytes))
            if len(places) == ROUND_CHUNKS:
                yield places
                places = []


class _RoundReader:
    """Pinned memory and as much of a GPU's, which rounds of either way fill."""

    def __init__(self, files: Sequence[native.File], device: int, *, chunk_bytes: int) -> None:
        self._files, self._chunk_bytes = files, chunk_bytes
        self._ring = native.HostBuffer(ROUND_CHUNKS * chunk_bytes, pinned=True)
        self._arena = allocate_device(device, self._ring.size)

    def read(self, places: Sequence[Place], mode: str) -> None:
        """Read one round."""
        plan = TransferPlan()
        for slot, place in enumerate(places):
            start = slot * self._chunk_bytes
            moves = Moves([(0, start, self._chunk_bytes, 0)], [])
            plan.add(self._ring.address + start, reads=[(*place, 0)], moves=moves)
        target = Target(device=self._arena.device, address=self._arena.address, pieces=())
        run_plan(
            plan,
            self._files,
            [target],
            mode=mode,
            threads=min(16, 2 * (os.cpu_count() or 4)),
            control=native.Control(),
        )
