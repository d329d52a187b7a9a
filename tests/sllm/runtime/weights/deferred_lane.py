"""A device that is not there, whose copies happen as late as they may: a missing wait shows."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Mark:
    """A point in the work asked of the device: the end of a copy that is not made yet, perhaps."""

    work: Callable[[], object] | None = None


class DeferredLane:
    """A Lane to host memory. A copy is made when it is waited for, in the order of all copies.

    Memory is filled with noise, so that what is used before it is copied is wrong.
    """

    def __init__(self) -> None:
        self.pinned: set[int] = set()
        self.closed = False
        self.allocated_bytes = 0
        self._asked: list[Mark] = []
        self._lock = threading.RLock()

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return noise."""
        self.allocated_bytes += size_bytes
        return torch.randint(0, 255, (size_bytes,), dtype=torch.uint8)

    def pin(self, memory: torch.Tensor) -> None:
        """Remember that memory is pinned."""
        self.pinned.add(memory.untyped_storage().data_ptr())

    def unpin(self, memory: torch.Tensor) -> None:
        """Forget it."""
        self.pinned.remove(memory.untyped_storage().data_ptr())

    def mark(self) -> Mark:
        """Return a mark that is passed at once: what computes is done when it returns."""
        return Mark()

    def copy(self, target: torch.Tensor, source: torch.Tensor, *, after: Mark) -> Mark:
        """Note a copy."""
        assert source.untyped_storage().data_ptr() in self.pinned, "copies are from pinned memory"
        assert target.shape == source.shape
        return self.launch(lambda: target.copy_(source), after=after)

    def launch(self, work: Callable[[], object], *, after: Mark) -> Mark:
        """Note work beside what is computed."""
        assert after.work is None, "copies come after what was computed"
        with self._lock:
            mark = Mark(work)
            self._asked.append(mark)
        return mark

    def wait(self, mark: Mark) -> None:
        """Make the copies up to a mark."""
        with self._lock:
            while mark.work is not None:
                first = self._asked.pop(0)
                assert first.work is not None, "a copy is made once"
                first.work()
                first.work = None

    def finish(self, mark: Mark) -> None:
        """Make the copies up to a mark."""
        self.wait(mark)

    def close(self) -> None:
        """Forget everything."""
        self.pinned.clear()
        self.closed = True
