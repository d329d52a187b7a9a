"""GPUs are opened all at once, and arenas are where they belong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.mark.parametrize(
    ("case", "failure"),
    [
        ("all_are_opened", ""),
        ("one_cannot_be_opened", "cuDevicePrimaryCtxRetain:3"),
        ("arenas_are_where_they_belong", ""),
        ("a_full_gpu_leaves_nothing_allocated", ""),
        ("known_arenas_are_allocated_before_the_plan_is_there", ""),
        ("a_guess_is_taken_where_it_fits", ""),
    ],
)
def test_several_gpus_are_opened_and_get_their_arenas(
    case: str, failure: str, fake_cuda: Path
) -> None:
    environment = {
        "SLLM_CUDA_LIBRARY": str(fake_cuda),
        "FAKE_CUDA_DEVICES": "4",
        "FAKE_CUDA_FAIL": failure,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "device_cases.py"), case],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
