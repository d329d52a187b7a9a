"""One thread per test: tiny products gain nothing from more, and a busy machine loses by them.

Kernels that no GPU runs, Triton's interpreter runs, without what takes it most of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import triton

from tests.sllm.runtime import quick_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

if triton.knobs.runtime.interpret:
    quick_interpreter.install()


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute in the calling thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
