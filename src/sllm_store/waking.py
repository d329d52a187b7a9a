"""Wake a GPU: its driver opens a context once a process, which takes some tenths of a second.

That is done without the interpreter's lock, so imports may go on beside it. PyTorch and the store
share the context that is there then.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from sllm_store import native

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE_BYTES = 256


def wake_gpu(device: int = 0, *, beside: Callable[[], None] | None = None) -> threading.Thread:
    """Begin to open a GPU in a thread; what goes wrong is left to who uses the GPU to find.

    beside: what is of use only where the GPU is there; done in a thread of its own.
    """
    arguments = (device, beside)
    thread = threading.Thread(target=_wake, args=arguments, name="wake-gpu", daemon=True)
    thread.start()
    return thread


def _wake(device: int, beside: Callable[[], None] | None) -> None:
    with suppress(native.CudaError, native.NativeError):
        if device < native.device_count():
            if beside is not None:
                threading.Thread(target=beside, name="beside-gpu", daemon=True).start()
            native.DeviceBuffer(device, _PROBE_BYTES)
