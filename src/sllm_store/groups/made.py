"""Tensors that no file has as they are used: made once, and kept in memory in the form of a file.

So they are read, laid out and moved as all others are. Rows that only change places stay blocks.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sllm_store import native
from sllm_store.convert.gguf_import import read_parts
from sllm_store.groups.layout import PAGE
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.convert.gguf_tensors import Conversion

_THREADS_MAX = 8


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """Where a tensor is in the file that is made, and how."""

    conversion: Conversion
    offset: int


class MadeFile:
    """Tensors in a file that only this process has; its memory goes with it.

    file: it has its size from the beginning, and its contents after `fill`.
    """

    def __init__(self, conversions: Sequence[Conversion], files: Sequence[native.File]) -> None:
        """Plan them, of parts of `files`."""
        self._files = files
        self._lock = threading.Lock()
        self._filled = False
        self._descriptor = os.memfd_create("sllm-made-tensors")
        weakref.finalize(self, os.close, self._descriptor)
        tensors = []
        offset = 0
        for conversion in conversions:
            tensors.append(MadeTensor(conversion, offset))
            offset = align_up(offset + conversion.rearranged_bytes, PAGE)
        os.ftruncate(self._descriptor, offset)
        self.tensors = tuple(tensors)
        self.file = native.File(f"/proc/self/fd/{self._descriptor}")

    def fill(self) -> None:
        """Make them, unless that has been done. Raises ReadError, and what a conversion raises."""
        with self._lock:
            if self._filled:
                return
            threads = min(len(os.sched_getaffinity(0)), _THREADS_MAX)
            with ThreadPoolExecutor(threads, thread_name_prefix="sllm-made") as executor:
                for _ in executor.map(self._make, self.tensors):
                    pass
            self._filled = True

    def _make(self, tensor: MadeTensor) -> None:
        values = tensor.conversion.rearrange(read_parts(tensor.conversion, self._files))
        assert values.nbytes == tensor.conversion.rearranged_bytes
        content, offset = values.reshape(-1).view(np.uint8).data, tensor.offset
        while content:
            count = os.pwrite(self._descriptor, content, offset)
            content, offset = content[count:], offset + count
