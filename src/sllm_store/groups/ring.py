"""Ring: groups read ahead of use, in an order that repeats, into a few buffers.

With R seconds to read a group and C to use it, a turn over n groups takes n * max(R, C) + R:
the buffers that are free are read into while the caller uses another.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from sllm_store.errors import DeadlineError
from sllm_store.groups.reads import Slot, open_reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm_store.groups.reader import GroupReader
    from sllm_store.groups.reads import Reading, Reads

TIMEOUT_S = 300.0
_Buffer = TypeVar("_Buffer")


@dataclass(slots=True)
class RingCounts:
    """What a ring has done: groups handed out, turns begun anew, and seconds waited for reads."""

    leased: int = 0
    restarts: int = 0
    wait_s: float = 0.0


class _Ahead(NamedTuple, Generic[_Buffer]):
    """A group that is being read, or has been."""

    group: int
    buffer: _Buffer
    reading: Reading


def open_ring(reader: GroupReader, order: Sequence[int], *, slots: int) -> Ring[Slot]:
    """Return a ring that reads from disk into memory of its own, with at most a slot per group."""
    slots = min(slots, len(order))
    slot_bytes = max(map(reader.size_bytes, order))
    buffer = reader.allocate(slots * slot_bytes)
    places = [Slot(buffer, slot * slot_bytes) for slot in range(slots)]
    return Ring(open_reads(reader, order), order, places)


class Ring(Generic[_Buffer]):
    """Hands out groups in the order given, again and again; asked for another, it starts there.

    For one thread. Close it, or use it as a context, to end its reads.
    """

    def __init__(
        self, reads: Reads[_Buffer], order: Sequence[int], buffers: Sequence[_Buffer]
    ) -> None:
        """Begin to read into the buffers, each large enough for any group; the reads are closed
        with the ring.
        """
        assert buffers
        assert len(set(order)) == len(order) > 0, "a group comes once in a turn"
        self.counts = RingCounts()
        self._reads = reads
        self._order = tuple(order)
        self._free = list(buffers)
        self._ahead: deque[_Ahead[_Buffer]] = deque()
        self._next = 0
        self._leased = False
        self._read_ahead()

    def __enter__(self) -> Ring[_Buffer]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def lease(self, group: int, *, timeout_s: float = TIMEOUT_S) -> Iterator[_Buffer]:
        """Return the buffer with a group; after the context it is read into again.

        Waits until the group is read. Raises what reading it raised, DeadlineError after timeout_s.
        """
        assert not self._leased, "one lease at a time"
        buffer = self._take(group, timeout_s)
        self._leased = True
        try:
            yield buffer
        finally:
            self._leased = False
            self._free.append(buffer)
            self._read_ahead()

    def close(self) -> None:
        """Cancel the reads in flight and wait for them. A second call does nothing."""
        self._reads.close()

    def _take(self, group: int, timeout_s: float) -> _Buffer:
        if not self._ahead or self._ahead[0].group != group:
            self._restart(group)
        first = self._ahead.popleft()
        started_s = time.monotonic()
        try:
            there = first.reading.wait(timeout_s)
        except BaseException:
            first.reading.abandon()  # What interrupts the wait does not end the read.
            self._free.append(first.buffer)
            raise
        if not there:
            self._ahead.appendleft(first)
            raise DeadlineError(f"a group was not read within {timeout_s} s")
        self.counts.leased += 1
        self.counts.wait_s += time.monotonic() - started_s
        return first.buffer

    def _restart(self, group: int) -> None:
        """Read from another group on; what was read ahead is dropped."""
        self._reads.cancel()
        for ahead in self._ahead:
            ahead.reading.abandon()
            self._free.append(ahead.buffer)
        self._ahead.clear()
        self._next = self._order.index(group)
        self.counts.restarts += 1
        self._read_ahead()

    def _read_ahead(self) -> None:
        """Read the next groups into all buffers that are free."""
        while self._free:
            buffer, group = self._free.pop(), self._order[self._next]
            self._ahead.append(_Ahead(group, buffer, self._reads.begin(group, buffer)))
            self._next = (self._next + 1) % len(self._order)
