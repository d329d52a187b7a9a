"""The fake CUDA driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.fake_driver import build_fake_cuda

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fake_cuda() -> Path:
    """The fake driver's library; a process that has it in SLLM_CUDA_LIBRARY sees two GPUs."""
    return build_fake_cuda(ROOT / "build" / "fake_cuda")
