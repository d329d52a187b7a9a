"""Ring: groups read ahead of use, in an order that repeats, into a few buffers.

With R seconds to read a group and C to use it, a turn over n groups takes n * max(R, C) + R:
threads read into the buffers that are free while the caller uses another.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from sllm_store import native
from sllm_store.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm_store.groups.reader import GroupReader

TIMEOUT_S = 300.0
READERS = 2  # A disk has nothing to do between two reads of one thread.
_Buffer = TypeVar("_Buffer")
_Into = TypeVar("_Into", contravariant=True)


class Fill(Protocol[_Into]):
    """Puts a group into a buffer, in a thread of the ring; ends early if the control is cancelled.

    With several readers it is called by as many threads at once.
    """

    def __call__(self, group: int, buffer: _Into, control: native.Control, /) -> None: ...


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
    reading: Future[None]


def open_ring(reader: GroupReader, order: Sequence[int], *, slots: int) -> Ring[native.HostBuffer]:
    """Return a ring that reads from disk into buffers of its own, at most one per group."""
    size_bytes = max(1, *map(reader.size_bytes, order))
    buffers = [reader.allocate(size_bytes) for _ in range(min(slots, len(order)))]
    return Ring(reader.read, order, buffers, readers=READERS)


class Ring(Generic[_Buffer]):
    """Hands out groups in the order given, again and again; asked for another, it starts there.

    For one thread. Close it, or use it as a context, to end its reads.
    """

    def __init__(
        self,
        fill: Fill[_Buffer],
        order: Sequence[int],
        buffers: Sequence[_Buffer],
        *,
        readers: int = 1,
    ) -> None:
        """Begin to read into the buffers, each large enough for any group.

        readers: how many groups may be read at once.
        """
        assert buffers
        assert len(set(order)) == len(order) > 0, "a group comes once in a turn"
        self.counts = RingCounts()
        self._fill = fill
        self._order = tuple(order)
        self._free = list(buffers)
        self._ahead: deque[_Ahead[_Buffer]] = deque()
        self._next = 0
        self._leased = False
        self._control = native.Control()
        self._executor = ThreadPoolExecutor(readers, thread_name_prefix="sllm-ring")
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
        self._control.cancel()
        self._executor.shutdown(cancel_futures=True)

    def _take(self, group: int, timeout_s: float) -> _Buffer:
        if not self._ahead or self._ahead[0].group != group:
            self._restart(group)
        first = self._ahead.popleft()
        started_s = time.monotonic()
        try:
            first.reading.result(timeout_s)
        except TimeoutError as error:
            if not first.reading.done():
                self._ahead.appendleft(first)
                raise DeadlineError(f"a group was not read within {timeout_s} s") from error
            self._free.append(first.buffer)
            raise
        except BaseException:
            self._free.append(first.buffer)
            raise
        self.counts.leased += 1
        self.counts.wait_s += time.monotonic() - started_s
        return first.buffer

    def _restart(self, group: int) -> None:
        """Read from another group on; what was read ahead is dropped."""
        self._control.cancel()
        self._control = native.Control()
        for ahead in self._ahead:
            if not ahead.reading.cancel():
                ahead.reading.exception()  # Waits: a buffer is free once nobody writes to it.
            self._free.append(ahead.buffer)
        self._ahead.clear()
        self._next = self._order.index(group)
        self.counts.restarts += 1
        self._read_ahead()

    def _read_ahead(self) -> None:
        """Read the next groups into all buffers that are free."""
        while self._free:
            buffer, group = self._free.pop(), self._order[self._next]
            reading = self._executor.submit(self._fill, group, buffer, self._control)
            self._ahead.append(_Ahead(group, buffer, reading))
            self._next = (self._next + 1) % len(self._order)
