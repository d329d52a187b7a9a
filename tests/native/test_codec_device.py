"""Segments decoded in device memory, against a fake driver that plays the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]
ROOT = Path(__file__).parents[2]


def run(run_case: Run, case: str, **settings: str) -> None:
    run_case(f"codec_device_cases:{case}", PYTHONPATH=str(ROOT), **settings)


@pytest.mark.parametrize(
    "case",
    [
        "more_segments_than_a_launch_takes_are_decoded",
        "a_corrupt_segment_is_an_error",
        "arguments_that_make_no_sense_are_refused",
    ],
)
def test_case(run_case: Run, case: str) -> None:
    run(run_case, case)


@pytest.mark.parametrize(
    "failure",
    [
        "cuModuleLoadDataEx",
        "cuModuleGetFunction",
        "cuStreamCreate",
        "cuLaunchKernel",
        "cuStreamSynchronize",
    ],
)
def test_a_failing_driver_fails_the_call(run_case: Run, failure: str) -> None:
    run(run_case, "a_failing_driver_fails_the_call", FAKE_CUDA_FAIL=failure)
