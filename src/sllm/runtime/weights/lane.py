"""Lane: copies from host memory to a device, beside what it computes, ordered by marks.

A mark is a point in the work that was asked of the device. Nothing here waits on the host but
`finish`: a copy is told which mark it comes after, and what computes which mark it waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from sllm_store.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

_Mark = TypeVar("_Mark")


class Lane(Protocol[_Mark]):
    """A device, and the way there. Close it once nothing uses its memory."""

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return bytes on the device."""

    def pin(self, memory: torch.Tensor) -> None:
        """Make host memory fit for copies beside computation."""

    def unpin(self, memory: torch.Tensor) -> None:
        """End that; no copy from it may be under way."""

    def mark(self) -> _Mark:
        """Return a mark after all that was asked to be computed."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, *, after: _Mark) -> _Mark:
        """Ask for a copy once a mark is passed; return the mark of its end."""

    def launch(self, work: Callable[[], object], *, after: _Mark) -> _Mark:
        """Ask for what `work` launches, beside what is computed, in the manner of a copy."""

    def wait(self, mark: _Mark) -> None:
        """Let what is computed from now on come after a mark."""

    def finish(self, mark: _Mark) -> None:
        """Return once a mark is passed."""

    def close(self) -> None:
        """Finish all copies and unpin what is pinned. A second call does nothing."""


class CudaLane:
    """A GPU, with a stream for copies. A mark is an event."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Kernels that copy take a place before those that compute: these wait for them in the end.
        self._copies = torch.cuda.Stream(device, priority=-1)
        self._pinned: dict[int, torch.Tensor] = {}

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return bytes on the GPU."""
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def pin(self, memory: torch.Tensor) -> None:
        """Register memory with the driver; its pages had better be there already."""
        with torch.cuda.device(self._device):
            _check(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        self._pinned[memory.data_ptr()] = memory

    def unpin(self, memory: torch.Tensor) -> None:
        """Unregister memory."""
        _check(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr()))
        del self._pinned[memory.data_ptr()]

    def mark(self) -> torch.cuda.Event:
        """Return a mark on the stream that computes."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(
        self, target: torch.Tensor, source: torch.Tensor, *, after: torch.cuda.Event
    ) -> torch.cuda.Event:
        """Copy on the stream for copies."""
        return self.launch(lambda: target.copy_(source, non_blocking=True), after=after)

    def launch(self, work: Callable[[], object], *, after: torch.cuda.Event) -> torch.cuda.Event:
        """Launch on the stream for copies."""
        done = torch.cuda.Event()
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(after)
            work()
            done.record(self._copies)
        return done

    def wait(self, mark: torch.cuda.Event) -> None:
        """Make the stream that computes wait."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: torch.cuda.Event) -> None:
        """Wait for an event."""
        mark.synchronize()

    def close(self) -> None:
        """Finish everything, since kernels read pinned memory too, and unregister."""
        torch.cuda.synchronize(self._device)
        for memory in list(self._pinned.values()):
            self.unpin(memory)


def _check(code: int) -> None:
    if int(code):
        raise DeviceError(
            f"the CUDA driver could not pin host memory (error {int(code)}): allow less host memory"
        )
