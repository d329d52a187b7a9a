"""Pinned memory through which this process's loads reach GPUs, kept for a while for the next load.

Pinning 128 MiB takes milliseconds that a load has no use for: it begins before the checkpoint is
opened, in a thread of its own, and a load soon after another finds memory that is pinned already.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.tiers.device import device_error

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP_S = 10.0


class _Ring:
    """Pinned memory, or soon."""

    def __init__(self, size_bytes: int, device: int) -> None:
        """Begin to pin it, in a thread."""
        self.size_bytes = size_bytes
        self.memory: Future[native.HostBuffer] = Future()
        arguments = (self.memory, size_bytes, device)
        threading.Thread(target=_pin, args=arguments, name="sllm-pin", daemon=True).start()

    @property
    def is_broken(self) -> bool:
        """Whether the memory could not be pinned."""
        return self.memory.done() and self.memory.exception() is not None


class Rings:
    """Rings that nobody uses at the moment. Thread-safe."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        """Unpin a ring when nobody has wanted it for `keep_s`."""
        self._keep_s = keep_s
        self._kept: dict[object, _Ring] = {}
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, size_bytes: int, device: int) -> Iterator[Future[native.HostBuffer]]:
        """Begin to get pinned memory, at least so much, for copies to a GPU.

        It is given back on leaving the block: nothing may use it then. The future raises the
        store's error if memory cannot be pinned.
        """
        ring = self._take(size_bytes) or _Ring(size_bytes, device)
        try:
            yield ring.memory
        finally:
            self._keep(ring)

    def _take(self, size_bytes: int) -> _Ring | None:
        with self._lock:
            for key, kept in self._kept.items():
                if kept.size_bytes >= size_bytes and not kept.is_broken:
                    return self._kept.pop(key)
        return None

    def _keep(self, ring: _Ring) -> None:
        """Keep a ring for the next load, also one still being pinned for a load that failed."""
        if ring.is_broken:
            return
        key = object()
        with self._lock:
            self._kept[key] = ring
        # Unpinning takes a moment too, so it is the timer's thread that does it.
        timer = threading.Timer(self._keep_s, self._drop, (key,))
        timer.daemon = True
        timer.start()

    def _drop(self, key: object) -> None:
        with self._lock:
            ring = self._kept.pop(key, None)  # None if it was taken meanwhile.
        del ring


def _pin(memory: Future[native.HostBuffer], size_bytes: int, device: int) -> None:
    try:
        native.device_memory(device)  # So that it is this GPU's context that memory is pinned in.
        memory.set_result(native.HostBuffer(size_bytes, pinned=True))
    except native.CudaError as error:
        memory.set_exception(device_error(error, "cannot pin host memory for the load"))
    except BaseException as error:  # noqa: BLE001 - who waits for the ring raises it
        memory.set_exception(error)
