"""GPU clients in processes of their own, against a store with the fake driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture
def gpu_environment(fake_cuda: Path) -> dict[str, str]:
    """What a process needs to see the fake GPUs."""
    return {
        "SLLM_CUDA_LIBRARY": str(fake_cuda),
        "FAKE_CUDA_MEMORY": str(256 << 20),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def start_gpu_client(
    gpu_environment: dict[str, str],
) -> Callable[..., subprocess.Popen[str]]:
    """Start a case of gpu_cases.py."""

    def start(case: str, *arguments: object, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(HERE / "gpu_cases.py"), case, *map(str, arguments)],
            env=os.environ | gpu_environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run_gpu_client(
    start_gpu_client: Callable[..., subprocess.Popen[str]],
) -> Callable[..., str]:
    """Run a case of gpu_cases.py to its end; return what it printed."""

    def run(case: str, *arguments: object, **settings: str) -> str:
        with start_gpu_client(case, *arguments, **settings) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return str(out)

    return run
