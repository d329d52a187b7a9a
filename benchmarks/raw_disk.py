"""What can this disk do? A sweep of direct reads and writes with nothing of ours in the way.

    python -m benchmarks.raw_disk --work /disk/directory --out raw_disk.json

Each case keeps so many requests of one size in flight from each of so many threads, by the
kernel's own asynchronous I/O (io_submit), on one file that is written once and read past the page
cache. Cases are repeated in rounds, so that a disk that drifts does so for all of them. With --ours
the same bytes are then read and written by the native core with what its tuner finds, in one run.

Sketch: a case moves BYTES at some GB/s; the default sweep of 30 cases of 1 GiB in two rounds takes
about 20 s on a disk of 4 GB/s.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import command, find_commit
from sllm_store import native
from sllm_store.disks import disk_memory, disk_of

if TYPE_CHECKING:
    from collections.abc import Sequence

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
READS = [
    *((1, depth, size) for depth in (8, 16, 32, 64) for size in (256 * KIB, 512 * KIB, MIB)),
    *((1, depth, 2 * MIB) for depth in (4, 8, 16)),
    *((threads, 16 // threads, MIB) for threads in (2, 4, 16)),
    (4, 16, 512 * KIB),
]
WRITES = [
    *((1, depth, MIB) for depth in (4, 16, 64)),
    (1, 32, 512 * KIB),
    (1, 8, 2 * MIB),
    (2, 16, MIB),
    (4, 1, 4 * MIB),
]
# What any disk is likely to give most to: the few ways that are worth trying in every round.
LIMIT_READS = [(1, 16, MIB), (1, 32, MIB), (1, 64, 512 * KIB), (4, 16, MIB)]
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209  # x86-64's numbers.
_READ, _WRITE = 0, 1


class _Request(ctypes.Structure):
    """struct iocb of linux/aio_abi.h."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("unused", ctypes.c_uint64),
        ("more_flags", ctypes.c_uint32),
        ("event_fd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to ask the disk; `depth` counts the requests of one thread."""

    write: bool
    threads: int
    depth: int
    size_bytes: int


def main() -> None:
    """Run the sweep and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--file-gib", type=float, default=8.0)
    parser.add_argument("--case-gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ours", action="store_true", help="also with the native core")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    file_bytes = int(args.file_gib * GIB) // (2 * MIB) * (2 * MIB)
    case_bytes = min(int(args.case_gib * GIB), file_bytes) // (2 * MIB) * (2 * MIB)
    path = args.work / "raw_disk.bin"
    sweep = Sweep(path, file_bytes, case_bytes)
    try:
        fresh = sweep.run(Case(write=True, threads=1, depth=16, size_bytes=MIB), file_bytes)
        rows = _sweep(sweep, args.rounds)
        content: dict[str, Any] = {
            "question": "What can this disk do?",
            "commit": find_commit(),
            "command": command(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "disk": asdict(disk_of(args.work)),
            "file_bytes": file_bytes,
            "case_bytes": case_bytes,
            "fresh_write_gb_per_s": fresh,
            "best": {"reads": _best(rows, write=False), "writes": _best(rows, write=True)},
            "rows": rows,
        }
        if args.ours:
            content["ours"] = {
                "reads": ours_read(path),
                "writes": ours_write(args.work, file_bytes),
            }
        args.out.write_text(json.dumps(content, indent=1) + "\n")
        shown = ("fresh_write_gb_per_s", "best", "ours")
        print(json.dumps({key: content.get(key) for key in shown}, indent=1))
    finally:
        path.unlink(missing_ok=True)


def _sweep(sweep: Sweep, rounds: int) -> list[dict[str, Any]]:
    cases = [
        Case(write=write, threads=threads, depth=depth, size_bytes=size)
        for write, settings in ((False, READS), (True, WRITES))
        for threads, depth, size in settings
    ]
    rates: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            rates[case].append(sweep.run(case))
    return [asdict(case) | {"gb_per_s": found} for case, found in rates.items()]


def _best(rows: list[dict[str, Any]], *, write: bool) -> dict[str, Any]:
    """Return the case with the best mean, not the luckiest one."""
    return max(
        (row for row in rows if row["write"] == write),
        key=lambda row: sum(row["gb_per_s"]) / len(row["gb_per_s"]),
    )


class Sweep:
    """A file to read from and write to directly; each case goes on where the last one ended."""

    def __init__(self, path: Path, file_bytes: int, case_bytes: int) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._case_bytes = case_bytes
        self._at = 0
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, file_bytes)

    def run(self, case: Case, size_bytes: int | None = None) -> float:
        """Return the rate of a case in GB/s; writes are synced within it."""
        size_bytes = size_bytes or self._case_bytes
        flags = (os.O_RDWR if case.write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags)
        try:
            places = [(descriptor, offset) for offset in self._offsets(size_bytes, case)]
            return _run(case, places, sync=descriptor if case.write else None)
        finally:
            os.close(descriptor)

    def _offsets(self, size_bytes: int, case: Case) -> list[int]:
        """Return the next offsets of the file."""
        count = size_bytes // case.size_bytes
        if self._at + size_bytes > self._file_bytes:
            self._at = 0
        offsets = [self._at + index * case.size_bytes for index in range(count)]
        self._at += size_bytes
        return offsets


def read_limit(paths: Sequence[Path], case_bytes: int) -> float:
    """Return the best rate, in GB/s, of a few ways to read files directly; 0.0 where that fails.

    Each way reads other parts of the files, so that what a disk keeps does not help the next.
    """
    descriptors: list[int] = []
    rates = [0.0]
    try:
        flags = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
        descriptors.extend(os.open(path, flags) for path in paths)
        for number, (threads, depth, size_bytes) in enumerate(LIMIT_READS):
            case = Case(write=False, threads=threads, depth=depth, size_bytes=size_bytes)
            places = [
                (descriptor, offset)
                for descriptor in descriptors
                for offset in range(0, os.fstat(descriptor).st_size - size_bytes + 1, size_bytes)
            ]
            start = len(places) * number // len(LIMIT_READS)
            end = len(places) * (number + 1) // len(LIMIT_READS)
            places = places[start:end][: max(case_bytes // size_bytes, 1)]
            if places:
                rates.append(_run(case, places))
    except OSError:
        return 0.0  # A file system without direct reads.
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return max(rates)


def _run(case: Case, places: Sequence[tuple[int, int]], *, sync: int | None = None) -> float:
    """Return the rate at which threads share (descriptor, offset), in GB/s, the sync included."""
    workers = [_Worker(case, places[thread :: case.threads]) for thread in range(case.threads)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sync is not None:
        os.fdatasync(sync)
    elapsed_s = time.perf_counter() - started_s
    for worker in workers:
        worker.require_success()
    return len(places) * case.size_bytes / elapsed_s / 1e9


class _Worker:
    """One thread with its own queue; its errors are raised by require_success().

    Its memory is in huge pages: a request into scattered small ones is split.
    """

    def __init__(self, case: Case, places: Sequence[tuple[int, int]]) -> None:
        self._case = case
        self._places = places
        self._memory = native.HostBuffer(case.depth * case.size_bytes)
        ctypes.memset(self._memory.address, 0x5A, self._memory.size)  # The pages must be there.
        self._failure: str | None = None
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_uint64(0)

    def run(self) -> None:
        if self._call(_SETUP, self._case.depth, ctypes.byref(self._context)) != 0:
            self._failure = f"io_setup: {os.strerror(ctypes.get_errno())}"
            return
        try:
            self._pump()
        finally:
            self._call(_DESTROY, ctypes.c_uint64(self._context.value))

    def require_success(self) -> None:
        if self._failure:
            raise OSError(self._failure)

    def _pump(self) -> None:
        case = self._case
        requests = [
            _Request(
                data=slot,
                opcode=_WRITE if case.write else _READ,
                address=self._memory.address + slot * case.size_bytes,
                size=case.size_bytes,
            )
            for slot in range(case.depth)
        ]
        pointers = [(ctypes.POINTER(_Request) * 1)(ctypes.pointer(entry)) for entry in requests]
        events = (_Event * case.depth)()
        context = ctypes.c_uint64(self._context.value)
        free = list(range(case.depth))
        in_flight = 0
        following = iter(self._places)
        left = len(self._places)
        while left or in_flight:
            while free and left:
                slot = free.pop()
                requests[slot].fd, requests[slot].offset = next(following)
                left -= 1
                if self._call(_SUBMIT, context, 1, pointers[slot]) != 1:
                    self._failure = f"io_submit: {os.strerror(ctypes.get_errno())}"
                    left = 0
                    break
                in_flight += 1
            if in_flight == 0:
                return
            got = self._call(_GETEVENTS, context, 1, case.depth, events, None)
            for event in events[: max(got, 0)]:
                free.append(event.data)
                in_flight -= 1
                if event.result != case.size_bytes:
                    self._failure, left = f"a request returned {event.result}", 0


def ours_read(path: Path) -> dict[str, Any]:
    """Read the file with the native core into a ring, as a load does, and say what was learnt."""
    slots, slot_bytes = 16, 8 * MIB
    ring = native.HostBuffer(slots * slot_bytes)
    ring.populate(4)
    file = native.File(str(path))
    chunks = file.size // slot_bytes
    steps = [
        (ring.address + index % slots * slot_bytes, index - slots if index >= slots else -1)
        for index in range(chunks)
    ]
    reads = [(index, 0, index * slot_bytes, slot_bytes, 0) for index in range(chunks)]
    tuner = disk_memory(os.environ).tuner(disk_of(path), "queued reads")
    rates = []
    for _ in range(3):
        file.evict()
        report = native.run_transfer(
            [file],
            steps,
            reads,
            [],
            [],
            mode="auto",
            threads=14,
            control=native.Control(),
            tuner=tuner,
        )
        rates.append(chunks * slot_bytes / report.total_s / 1e9)
    return {"gb_per_s": rates, **_learnt(tuner)}


def ours_write(directory: Path, size_bytes: int) -> dict[str, Any]:
    """Write as many bytes with the native core, checksums and the sync at the end included."""
    source = native.HostBuffer(min(size_bytes, 2 * GIB))
    source.populate(4)
    tuner = disk_memory(os.environ).tuner(disk_of(directory), "writes")
    rates = []
    path = directory / "raw_disk_ours.bin"
    for _ in range(3):
        control = native.Control()
        try:
            started_s = time.perf_counter()
            writer = native.FileWriter(str(path), threads=4, direct=True, tuner=tuner)
            for offset in range(0, size_bytes, source.size):
                piece = (offset, source.address, min(source.size, size_bytes - offset))
                writer.write([piece], control)
            writer.finish(size_bytes)
            rates.append(size_bytes / (time.perf_counter() - started_s) / 1e9)
        finally:
            path.unlink(missing_ok=True)
    return {"gb_per_s": rates, **_learnt(tuner)}


def _learnt(tuner: native.Tuner) -> dict[str, Any]:
    return {
        "best": tuner.best,
        "rate_gb_per_s": tuner.rate / 1e9,
        "windows": tuner.windows,
        "settled": tuner.settled,
        "refused": tuner.refused,
    }


if __name__ == "__main__":
    main()
