"""What of opening a model needs no PyTorch, begun before that is imported; and its import.

Importing PyTorch takes seconds, in Python and in the dynamic linker. Of what a model needs first,
its file, the GPU's context and the compiler's key need neither; and modules that know nothing of
PyTorch are imported beside the linker.
"""

from __future__ import annotations

import gc
import re
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from sllm.backends.libraries import begin_libraries

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sllm_store.groups.head_start import HeadStart

_RUNTIME: Final = "sllm.backends.local"
# PyTorch imports these too. The linker loads one library at a time, for which whoever imports waits
# with the interpreter's lock: so what has libraries of its own comes before PyTorch's.
_BEFORE: Final = ("numpy",)
_BESIDE: Final = ("typing_extensions", "torchgen.model", "pynvml")


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
        from sllm.runtime.kernels.compiler_key import find_compiler_key
        from sllm_store.waking import wake_gpu

        wake_gpu(number, beside=find_compiler_key)
    from sllm_store.groups.head_start import HeadStart

    return HeadStart(path, device=number, budget_bytes=budget_bytes)


def import_runtime() -> None:
    """Import what computes. What that brings stays, and is never looked at for garbage."""
    if _RUNTIME in sys.modules:
        return
    from sllm_store.interpreter import no_collection, short_turns

    with short_turns(), no_collection():
        _import_each(_BEFORE)
        loading = begin_libraries()
        _import_each(_BESIDE)
        loading.join()
        import_module(_RUNTIME)
        gc.freeze()


def _import_each(names: Iterable[str]) -> None:
    for name in names:
        with suppress(ImportError):
            import_module(name)
