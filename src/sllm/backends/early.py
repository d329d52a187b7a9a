"""What of opening a model needs no PyTorch, begun before that is imported; and its import.

Importing PyTorch takes seconds, nearly all of them in Python. Of what a model needs first, its
file, the GPU's context and the compiler's key take little of that, so they go on beside it.
"""

from __future__ import annotations

import gc
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.groups.head_start import HeadStart

_RUNTIME: Final = "sllm.backends.local"


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
        import_module(_RUNTIME)
        gc.freeze()
