"""What this machine's links can do, measured with nothing of ours in the way.

The disk is read directly, past the page cache, by plain threads with several depths and sizes; the
page cache is read the same way but through it; the link to a GPU is one copy out of pinned memory.
A load of B bytes takes at least B over the slowest of those that it passes.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.tiers.link_rate import link_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# (threads, bytes a read): deep queues of small reads win on some disks, few large ones on others.
DIRECT_SWEEP = ((16, 1 << 20), (64, 512 << 10), (32, 1 << 20), (16, 4 << 20), (8, 16 << 20))
CACHED_SWEEP = ((16, 4 << 20),)
READ_BYTES_MAX = 2 << 30
LINK_BYTES = 2 << 30
_LINK_COPIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRate:
    """How fast files were read with so many threads and such reads."""

    threads: int
    block_bytes: int
    bytes_per_s: float


def read_rates(
    paths: Sequence[Path],
    *,
    direct: bool,
    bytes_max: int = READ_BYTES_MAX,
) -> list[ReadRate]:
    """Read from files in each way of a sweep; return the rates, none where direct reads fail.

    Each way reads other parts of the files, so that a disk's own cache does not help the next.
    """
    sweep = DIRECT_SWEEP if direct else CACHED_SWEEP
    rates: list[ReadRate] = []
    descriptors: list[int] = []
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        descriptors += [os.open(path, flags) for path in paths]
        for index, (threads, block_bytes) in enumerate(sweep):
            blocks = _blocks(descriptors, block_bytes, bytes_max, part=(index, len(sweep)))
            if blocks:
                rates.append(_read(blocks, threads, block_bytes))
    except OSError:
        return []  # A file system without direct I/O, such as tmpfs.
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return rates


def best(rates: Sequence[ReadRate]) -> float:
    """Return the highest rate in bytes a second, 0.0 if there are none."""
    return max((rate.bytes_per_s for rate in rates), default=0.0)


def link_bytes_per_s(device: int, *, size_bytes: int = LINK_BYTES) -> float:
    """Return the best rate of several copies from pinned memory to a GPU."""
    host = native.HostBuffer(size_bytes, pinned=True)
    return link_rate(device, host.address, size_bytes, copies=_LINK_COPIES)


def _blocks(
    descriptors: Sequence[int], block_bytes: int, bytes_max: int, *, part: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return (descriptor, offset) of every part-th block, at most bytes_max in all."""
    number, parts = part
    places = [
        (descriptor, offset)
        for descriptor in descriptors
        for offset in range(0, os.fstat(descriptor).st_size - block_bytes + 1, block_bytes)
    ]
    start, end = len(places) * number // parts, len(places) * (number + 1) // parts
    return places[start:end][: max(1, bytes_max // block_bytes)]


def _read(blocks: Sequence[tuple[int, int]], threads: int, block_bytes: int) -> ReadRate:
    """Read the blocks once; the buffers are there before the clock starts, in huge pages.

    A disk's request into scattered small ones is split, which costs up to half of its rate.
    """
    memory = native.HostBuffer(threads * block_bytes)
    memory.populate(1)
    buffers = [
        (ctypes.c_char * block_bytes).from_address(memory.address + thread * block_bytes)
        for thread in range(threads)
    ]
    pending = _Shared(iter(blocks))

    def work(buffer: ctypes.Array[ctypes.c_char]) -> int:
        done = 0
        while (place := pending.take()) is not None:
            done += os.preadv(place[0], [buffer], place[1])
        return done

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(time.sleep, itertools.repeat(0.001, threads)))  # Start the threads.
        started_s = time.perf_counter()
        done = sum(executor.map(work, buffers))
        elapsed_s = time.perf_counter() - started_s
    return ReadRate(threads=threads, block_bytes=block_bytes, bytes_per_s=done / elapsed_s)


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, items: Iterator[tuple[int, int]]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def take(self) -> tuple[int, int] | None:
        """Return the next item, None after the last."""
        with self._lock:
            return next(self._items, None)
