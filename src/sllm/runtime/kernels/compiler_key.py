"""What Triton's cache knows a compiler by, found before the first kernel asks.

Triton reads and sums all of its own library for that, 400 MB, whenever a process first needs a
kernel: half a second in which the kernels of a second process would wait for nothing else.
"""

from __future__ import annotations

from contextlib import suppress


def find_compiler_key() -> None:
    """Have the key found once; where there is no Triton, nobody will ask."""
    with suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()
