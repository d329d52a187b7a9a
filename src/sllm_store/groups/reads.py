"""Reads: groups on their way into slots, by threads or by a queue that the kernel works off."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sllm_store import native
from sllm_store.disks import disk_memory
from sllm_store.errors import StoreError
from sllm_store.tiers.transfer import read_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Future

    from sllm_store.groups.reader import GroupReader

_Into = TypeVar("_Into", contravariant=True)
_LOOK_S = 60.0
_TURN_S = 0.5  # The interpreter sees to signals between two waits for the kernel.
_READERS = 2  # A disk has nothing to do between two reads of one thread.


@dataclass(frozen=True, slots=True)
class Slot:
    """The part of a buffer that begins at an offset, with room for any group."""

    buffer: native.HostBuffer
    offset: int


class Fill(Protocol[_Into]):
    """Puts a group into a buffer, in a thread; ends early if the control is cancelled.

    With several readers it is called by as many threads at once.
    """

    def __call__(self, group: int, buffer: _Into, control: native.Control, /) -> None: ...


class Reading(Protocol):
    """A group on its way."""

    def wait(self, timeout_s: float) -> bool:
        """Return whether it is there in time; raise what reading it raised."""

    def abandon(self) -> None:
        """Return once nobody writes to the buffer, whether the group is there or not.

        At once after wait has returned True, or raised what reading raised.
        """


class Reads(Protocol[_Into]):
    """What a ring fills its buffers with."""

    def begin(self, group: int, buffer: _Into) -> Reading:
        """Begin to put a group into a buffer that nobody uses."""

    def cancel(self) -> None:
        """Let what has begun end early. It has still to be abandoned."""

    def close(self) -> None:
        """Cancel what has begun and wait for it. A second call does nothing."""


class _Future:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self, timeout_s: float) -> bool:
        try:
            self._future.result(timeout_s)
        except TimeoutError:
            if not self._future.done():
                return False
            raise
        return True

    def abandon(self) -> None:
        if not self._future.cancel():
            self._future.exception()


class ThreadedReads(Generic[_Into]):
    """Reads by a function, in as many threads as there are readers."""

    def __init__(self, fill: Fill[_Into], *, readers: int = 1) -> None:
        self._fill = fill
        self._control = native.Control()
        self._executor = ThreadPoolExecutor(readers, thread_name_prefix="sllm-ring")

    def begin(self, group: int, buffer: _Into) -> Reading:
        """Call the function in a thread, soon."""
        return _Future(self._executor.submit(self._fill, group, buffer, self._control))

    def cancel(self) -> None:
        """Cancel the control of what has begun; what follows has another."""
        self._control.cancel()
        self._control = native.Control()

    def close(self) -> None:
        """Cancel, and end the threads."""
        self._control.cancel()
        self._executor.shutdown(cancel_futures=True)


class _Queued:
    def __init__(self, reader: GroupReader, queue: native.ReadQueue, number: int) -> None:
        self._reader = reader
        self._queue = queue
        self._number = number
        self._is_over = False

    def wait(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self._is_over:
            left_s = deadline_s - time.monotonic()
            try:
                self._is_over = self._queue.wait(self._number, max(min(left_s, _TURN_S), 0.0))
            except native.NativeError as error:
                self._is_over = True
                raise read_error(error) from error
            if left_s <= _TURN_S:
                break
        if self._is_over:
            self._reader.require_unchanged()
        return self._is_over

    def abandon(self) -> None:
        with suppress(StoreError):
            while not self._is_over:
                self.wait(_LOOK_S)


class QueuedReads:
    """Reads from disk that the kernel has as soon as they have begun.

    No thread has to get a processor for a read to go on, and to ask for a layer of 2 MB takes 30 us
    of one; a transfer with threads of its own took 300 to 600 us.
    """

    def __init__(self, reader: GroupReader) -> None:
        """Raise NativeError where there are no such reads."""
        reader.prepare()
        self._reader = reader
        self._queue = native.ReadQueue(reader.files, in_turns=_is_virtual(reader.files))

    def begin(self, group: int, buffer: Slot) -> Reading:
        """Ask for a group."""
        number = self._queue.begin(self._reader.ranges(group), buffer.buffer, buffer.offset)
        return _Queued(self._reader, self._queue, number)

    def cancel(self) -> None:
        """Do nothing: what the disk was asked for cannot be taken back."""

    def close(self) -> None:
        """Wait for all that was asked for."""
        self._queue.drain()


def _is_virtual(files: Sequence[native.File]) -> bool:
    """Return whether a hypervisor is behind the files' disk: see native.ReadQueue."""
    memory = disk_memory(os.environ)
    return any(memory.find(Path(file.path)).kind == "virtual" for file in files)


def open_reads(reader: GroupReader, groups: Iterable[int]) -> Reads[Slot]:
    """Return what reads these groups from disk fastest."""
    if reader.mode == "auto" and all(map(reader.lands_in_place, groups)):
        with suppress(OSError):  # NativeError is one.
            return QueuedReads(reader)

    def read(group: int, slot: Slot, control: native.Control) -> None:
        reader.read_many([(group, slot.offset)], slot.buffer, control)

    return ThreadedReads(read, readers=_READERS)
