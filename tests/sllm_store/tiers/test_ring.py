"""The ring of loads without a store, with the fake driver, which counts what is pinned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.mark.parametrize(
    "case",
    [
        "loads_in_a_row",
        "placed_before_the_bytes",
        "failed_loads_give_their_ring_back",
        "rings_are_kept_and_unpinned",
        "memory_that_cannot_be_pinned",
    ],
)
def test_loads_pass_pinned_memory(case: str, fake_cuda: Path, tmp_path: Path) -> None:
    environment = {
        "SLLM_CUDA_LIBRARY": str(fake_cuda),
        "FAKE_CUDA_MEMORY": str(512 << 20),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "ring_cases.py"), case, str(tmp_path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
