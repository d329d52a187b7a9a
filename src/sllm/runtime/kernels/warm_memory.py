"""WarmMemory: which kernels earlier processes have compiled, told beside what they compiled.

It is in the directory of Triton's cache, and goes with it. What it says holds for one Triton, one
kind of device and these very kernels.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sllm_store.user_cache import keep_text

if TYPE_CHECKING:
    from collections.abc import Iterable


class WarmMemory:
    """Descriptions of work that was done with the same compiler, device and kernels."""

    def __init__(self, directory: Path, *, circumstances: Iterable[str]) -> None:
        """circumstances: all that a compiled kernel depends on besides the work."""
        self._directory = directory
        self._circumstances = tuple(circumstances)

    def knows(self, work: str) -> bool:
        """Return whether it was done."""
        return self._file(work).is_file()

    def remember(self, work: str) -> None:
        """Tell later processes; where that cannot be written they do it again."""
        with suppress(OSError):
            keep_text(self._file(work), work)

    def _file(self, work: str) -> Path:
        text = "\n".join((*self._circumstances, work))
        return self._directory / f"sllm-warm-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def memory_of(device: torch.device) -> WarmMemory | None:
    """Return the memory of what is compiled for a GPU's kind; None if Triton does not say."""
    try:
        from triton import knobs
        from triton.runtime.cache import triton_key
    except ImportError:
        return None
    here = Path(__file__).parent
    sources = hashlib.sha256()
    for file in sorted((*here.glob("*.py"), *here.glob("device/*.py"))):
        sources.update(file.read_bytes())
    name = torch.cuda.get_device_name(device)
    circumstances = (triton_key(), torch.__version__, name, sources.hexdigest())
    return WarmMemory(Path(knobs.cache.dir), circumstances=circumstances)
