"""PyTorch's shared libraries, loaded in a thread before PyTorch is imported.

The linker's part of that import is a second or so of one processor, and needs no interpreter: what
it loads, and the order and visibility, are PyTorch's own.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_LIBRARIES: Final = (
    ("libtorch_global_deps.so", ctypes.RTLD_GLOBAL),
    ("libtorch_cpu.so", ctypes.RTLD_LOCAL),
    ("libtorch_cuda.so", ctypes.RTLD_LOCAL),
)


@cache
def begin_libraries() -> threading.Thread:
    """Begin to load them, once a process; join the thread before the import.

    Otherwise that would wait with the interpreter's lock in its hands.
    """
    thread = threading.Thread(target=_load, name="torch-libraries")
    thread.start()
    return thread


def _load() -> None:
    """Load what there is; what fails here, the import meets again and tells."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return
    directory = Path(found.origin).parent / "lib"
    for name, visibility in _LIBRARIES:
        if (directory / name).exists():
            with suppress(OSError):
                ctypes.CDLL(str(directory / name), mode=visibility)
