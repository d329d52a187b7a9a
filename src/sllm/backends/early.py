"""What of opening a model needs no PyTorch, begun before that is imported; and its import.

Importing PyTorch takes seconds, in Python and in the dynamic linker. Of what a model needs first,
its file, the GPU's context and the compiler's key need neither; and the linker's part needs no
interpreter, so modules that know nothing of PyTorch are imported beside it.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sllm.runtime.kernels.compiler_key import find_compiler_key
from sllm_store.groups.head_start import HeadStart
from sllm_store.interpreter import no_collection, short_turns
from sllm_store.waking import wake_gpu

_RUNTIME: Final = "sllm.backends.local"
# PyTorch imports these too, or what is imported after it does.
_BESIDE: Final = ("numpy", "typing_extensions", "torchgen.model", "pynvml", "multiprocessing")
# In the order, and with the visibility, in which PyTorch itself loads them.
_LIBRARIES: Final = (
    ("libtorch_global_deps.so", ctypes.RTLD_GLOBAL),
    ("libtorch_cpu.so", ctypes.RTLD_LOCAL),
    ("libtorch_cuda.so", ctypes.RTLD_LOCAL),
)


def begin_early(path: Path, device: str, *, budget_bytes: int | None = None) -> HeadStart | None:
    """Begin to open a checkpoint, and the GPU that it goes to; None where all is left to later.

    device: as EngineOptions has it; a name that is wrong is told later. budget_bytes: what may be
    taken on it. Whoever asks closes what is returned.
    """
    found = re.fullmatch(r"auto|cuda(?::([0-9]{1,3}))?", device)
    if found is None:
        return None
    number = int(found[1] or 0)
    if "torch" not in sys.modules:
        wake_gpu(number, beside=find_compiler_key)
    return HeadStart(path, device=number, budget_bytes=budget_bytes)


def import_runtime() -> None:
    """Import what computes. What that brings stays, and is never looked at for garbage."""
    if _RUNTIME in sys.modules:
        return
    with short_turns(), no_collection():
        loading = threading.Thread(target=_load_libraries, name="load-libraries", daemon=True)
        loading.start()
        for name in _BESIDE:
            with suppress(ImportError):
                import_module(name)
        loading.join()
        import_module(_RUNTIME)
        gc.freeze()


def _load_libraries() -> None:
    """Load PyTorch's libraries, which its import then finds there; what fails, it meets again."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return
    directory = Path(found.origin).parent / "lib"
    for name, visibility in _LIBRARIES:
        if (directory / name).exists():
            with suppress(OSError):
                ctypes.CDLL(str(directory / name), mode=visibility)
