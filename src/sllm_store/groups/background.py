"""BackgroundReads: groups read into one buffer while the caller computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from sllm_store.groups.reader import GroupReader

TIMEOUT_S = 300.0


class BackgroundRead:
    """Groups on their way from disk; all of them are there, or none is."""

    def __init__(self, reading: Future[None], control: native.Control) -> None:
        self._reading = reading
        self._control = control

    def wait(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until all are read; raise what reading raised, DeadlineError after timeout_s."""
        try:
            self._reading.result(timeout_s)
        except TimeoutError as error:
            if not self._reading.done():
                raise DeadlineError(f"groups were not read within {timeout_s} s") from error
            raise

    def abandon(self) -> bool:
        """Cancel what is not read yet; once this returns nobody writes. Return if all is there."""
        if not self._reading.done():
            self._control.cancel()
            self._reading.cancel()
        return not self._reading.cancelled() and self._reading.exception() is None


class BackgroundReads:
    """A buffer and a thread that reads into it. Close it to end its reads."""

    def __init__(self, reader: GroupReader, size_bytes: int) -> None:
        self.buffer = native.HostBuffer(max(size_bytes, 1))
        self._reader = reader
        self._last: BackgroundRead | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sllm-reads")

    def begin(self, places: Sequence[tuple[int, int]]) -> BackgroundRead:
        """Begin to read groups to offsets of the buffer, all at once."""
        control = native.Control()
        reading = self._executor.submit(self._reader.read_many, places, self.buffer, control)
        self._last = BackgroundRead(reading, control)
        return self._last

    def close(self) -> None:
        """Cancel the reads in flight and wait for them. A second call does nothing."""
        if self._last is not None:
            self._last.abandon()
        self._executor.shutdown(cancel_futures=True)
