"""Wake a GPU: its driver opens a context once a process, which takes some tenths of a second.

That is done without the interpreter's lock, so imports may go on beside it. PyTorch and the store
share the context that is there then.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from sllm_store import native

_PROBE_BYTES = 256


def wake_gpu(device: int = 0) -> threading.Thread:
    """Begin to open a GPU in a thread; what goes wrong is left to who uses the GPU to find."""
    thread = threading.Thread(target=_wake, args=(device,), name="wake-gpu", daemon=True)
    thread.start()
    return thread


def _wake(device: int) -> None:
    with suppress(native.CudaError, native.NativeError):
        if device < native.device_count():
            native.DeviceBuffer(device, _PROBE_BYTES)
