"""What makes a cold load slower than the disk: the ring, unaligned files, or the tuner?

    python -m benchmarks.cold_ways --work /disk/directory --out cold_ways.json [--gib 4]

One file, read from the disk by the native core in turns, in several ways that differ in one thing
each: into memory for all of it or through a ring of some shape; in private memory or in shared, as
the store's pool is, in huge pages or small ones; from places that fit the disk's blocks or, as in
published safetensors files, not (then every byte is copied once more, or memory is shifted too);
with a setting that stays, or with the search that looks for one; and, where there is a GPU, copied
there. Then a GPU copies alone, from pinned memory that is aligned or shifted.

Sketch: 20 ways at 4 GB/s take a second each for 4 GiB; three rounds take a minute.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.raw_disk import GIB, KIB, MIB
from benchmarks.result import Result
from sllm_store import native

THREADS = 14
SHIFT_BYTES = 520  # What a header of a safetensors file shifts its tensors by, or so.
PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to read the file. `slots` of 0 is memory for all of it; `setting` None learns.

    What is shifted is read `in_place` if the memory is shifted as the file is. A way that is not
    `cold` reads nothing.
    """

    name: str
    memory: str = "private"
    in_place: bool = False
    cold: bool = True
    slots: int = 16
    slot_bytes: int = 8 * MIB
    is_shifted: bool = False
    setting: tuple[int, int, int] | None = (1, 16, MIB)
    to_gpu: bool = False


WAYS = (
    Way(name="ring of 16 x 8 MiB"),
    Way(name="no ring", slots=0),
    Way(name="no ring, chunks of 32 MiB", slots=0, slot_bytes=32 * MIB),
    Way(name="ring of 8 x 32 MiB", slots=8, slot_bytes=32 * MIB),
    Way(name="ring of 64 x 8 MiB", slots=64),
    Way(name="ring, shifted", is_shifted=True),
    Way(name="no ring, shifted", slots=0, is_shifted=True),
    Way(name="ring, shifted as the file", is_shifted=True, in_place=True),
    Way(name="pool in huge pages", memory="huge", slots=0, slot_bytes=32 * MIB),
    Way(
        name="pool in huge pages, shifted as the file",
        memory="huge",
        slots=0,
        slot_bytes=32 * MIB,
        is_shifted=True,
        in_place=True,
    ),
    Way(name="pool in huge pages, shifted", memory="huge", slots=0, is_shifted=True),
    Way(name="pool in small pages", memory="small", slots=0, slot_bytes=32 * MIB),
    Way(name="pool in small pages, shifted", memory="small", slots=0, is_shifted=True),
    Way(name="ring, shifted, two threads", is_shifted=True, setting=(2, 16, MIB)),
    Way(name="ring, 64 reads of 512 KiB", setting=(1, 64, 512 * KIB)),
    Way(name="ring, four threads", setting=(4, 16, MIB)),
    Way(name="ring, the search", setting=None),
    Way(name="ring, the search, shifted", setting=None, is_shifted=True),
    Way(name="ring, to the GPU", to_gpu=True),
    Way(name="ring, to the GPU, shifted", to_gpu=True, is_shifted=True),
    Way(name="ring, to the GPU, shifted as the file", to_gpu=True, is_shifted=True, in_place=True),
    Way(name="copies alone", to_gpu=True, cold=False, slots=0),
    Way(
        name="copies alone, shifted",
        to_gpu=True,
        cold=False,
        slots=0,
        is_shifted=True,
        in_place=True,
    ),
    Way(name="ring, to the GPU, the search, shifted", setting=None, to_gpu=True, is_shifted=True),
)


class Reading:
    """Memory for the reads, touched, and the file."""

    def __init__(self, path: Path, *, on_gpu: bool) -> None:
        """Map as much memory as the file has, of each kind, and a page for every chunk."""
        self._file = native.File(str(path))
        size = self._file.size + self._file.size // Way.slot_bytes * PAGE + PAGE
        private = native.HostBuffer(size, pinned=on_gpu)
        huge, small = native.SharedPool(size), native.SharedPool(size)
        if not on_gpu:
            private.populate(4)
        huge.populate(THREADS)
        ctypes.memset(small.address, 1, size)  # Page by page, as the kernel gives them.
        self._memory: dict[str, native.HostBuffer | native.SharedPool] = {
            "private": private,
            "huge": huge,
            "small": small,
        }
        self._target = native.DeviceBuffer(0, self._file.size) if on_gpu else None

    def run(self, way: Way) -> dict[str, Any]:
        """Return the rate of one reading, and what the search had found by its end."""
        self._file.evict()
        shift = SHIFT_BYTES if way.is_shifted else 0
        size = way.slot_bytes
        chunks = (self._file.size - shift) // size
        slots = way.slots or chunks
        at = shift if way.in_place else 0
        stride = size + (PAGE if way.in_place and way.slots else 0)
        base = self._memory[way.memory].address
        steps = [
            (base + index % slots * stride, index - slots if index >= slots else -1)
            for index in range(chunks)
        ]
        reads = [(index, 0, shift + index * size, size, at) for index in range(chunks)]
        copies = [(index, 0, index * size, size, at) for index in range(chunks) if way.to_gpu]
        start = way.setting or (1, 16, MIB)
        tuner = native.Tuner(queued=True, start=start, learns=way.setting is None)
        report = native.run_transfer(
            [self._file],
            steps,
            reads if way.cold else [],
            copies,
            [(0, self._target.address)] if way.to_gpu and self._target is not None else [],
            mode="auto",
            threads=THREADS,
            control=native.Control(),
            tuner=tuner,
        )
        return {
            "gb_per_s": chunks * size / report.total_s / 1e9,
            "direct_part": report.bytes_direct / (chunks * size),
            "windows": tuner.windows,
            "best": list(tuner.best),
            "setting_at_end": list(tuner.setting),
        }


def main() -> None:
    """Read in turns, and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    on_gpu = torch.cuda.is_available()
    result = Result(
        (__doc__ or "").splitlines()[0],
        out=args.out,
        device="cuda:0" if on_gpu else "cpu",
        commit=args.commit,
    )
    path = args.work / "cold_ways.bin"
    try:
        _write(path, int(args.gib * GIB) // (64 * MIB) * 64 * MIB)
        reading = Reading(path, on_gpu=on_gpu)
        ways = [way for way in WAYS if on_gpu or not way.to_gpu]
        found: dict[str, list[dict[str, Any]]] = {way.name: [] for way in ways}
        for number in range(args.rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                found[way.name].append(reading.run(way))
        for name, loads in found.items():
            median = statistics.median(load["gb_per_s"] for load in loads)
            result.add({"way": name, "gb_per_s_median": median, "loads": loads})
            print(f"{name:40} {median:6.2f} GB/s  {loads[-1]['setting_at_end']}")
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, size_bytes: int) -> None:
    block = torch.randint(0, 256, (64 * MIB,), dtype=torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        for _ in range(size_bytes // len(block)):
            file.write(block)


if __name__ == "__main__":
    main()
