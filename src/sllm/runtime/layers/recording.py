"""Recording what is asked of a device, to ask it again at once: a CUDA graph, or a plain call."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Protocol

import torch

from sllm.runtime.kernels.chains import chained_launches

if TYPE_CHECKING:
    from collections.abc import Callable

_one_at_a_time = Lock()  # PyTorch records one graph of a process at a time.
_WARM_RUNS = 2  # The first compiles, and takes what stays: neither may happen in a recording.


class Recorder(Protocol):
    """Records computations whose tensors stay where they are."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Return what computes the same again, of what is in its tensors then.

        It may be computed meanwhile, so that has to be harmless. The result is overwritten by the
        next call of what any recording of this recorder returned.
        """


class PlainRecorder:
    """Records nothing: what a recording is held against."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Return the computation itself."""
        return compute


class GraphRecorder:
    """Records CUDA graphs, which share one pool of memory: they are replayed one at a time.

    Kernels in a graph make a chain where the device can, so weights have to stay where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Record a graph; other threads may use the device meanwhile."""
        with torch.cuda.device(self._device), chained_launches(self._device):
            outside = torch.cuda.current_stream()
            self._stream.wait_stream(outside)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_RUNS):
                    compute()
            outside.wait_stream(self._stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            recording = torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            )
            with _one_at_a_time, recording:
                found = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return found

        return replay


def recorder_on(device: torch.device) -> Recorder | None:
    """Return what records on a device; None where a launch costs nothing."""
    return GraphRecorder(device) if device.type == "cuda" else None
