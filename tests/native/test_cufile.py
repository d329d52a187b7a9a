"""Reads from files to device memory by cuFile, against a fake one that checks every call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sllm_store import native

Run = Callable[..., None]
ROOT = Path(__file__).parents[2]


def test_the_conformance_suite_of_reading_holds(fake_cuda: Path, fake_cufile: Path) -> None:
    fakes = {"SLLM_CUDA_LIBRARY": str(fake_cuda), "SLLM_CUFILE_LIBRARY": str(fake_cufile)}
    suite = [str(ROOT / "tests" / "native" / "test_reading.py"), "-k", "cufile"]
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *suite, *options],
        env=os.environ | fakes,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    "case",
    [
        "bytes_pass_the_host_by",
        "a_step_with_other_work_is_read_as_usual",
        "bytes_that_nobody_reads_are_counted",
        "reads_to_two_devices_arrive_on_both",
        "a_request_that_makes_no_sense_is_refused",
        "files_are_registered_once",
    ],
)
def test_case(run_case: Run, case: str) -> None:
    run_case(f"cufile_cases:{case}")


def test_reads_that_bring_less_than_they_were_asked_for_go_on(run_case: Run) -> None:
    run_case("cufile_cases:bytes_pass_the_host_by", FAKE_CUFILE_SHORT="70001")


def test_a_failing_read_names_the_file_and_the_reason(run_case: Run) -> None:
    run_case("cufile_cases:a_failing_read_names_the_reason", FAKE_CUFILE_FAIL="cuFileRead:3")


def test_a_failing_read_has_its_errno(run_case: Run) -> None:
    failure = {"FAKE_CUFILE_FAIL": "cuFileRead:3", "FAKE_CUFILE_ERRNO": "61"}
    run_case("cufile_cases:a_failing_read_has_its_errno", **failure)


def test_a_file_that_cufile_refuses_is_an_error(run_case: Run) -> None:
    failure = {"FAKE_CUFILE_FAIL": "cuFileHandleRegister"}
    run_case("cufile_cases:a_refused_file_is_an_error", **failure)


def test_a_library_that_does_not_open_says_why(run_case: Run) -> None:
    run_case("cufile_cases:opening_fails", FAKE_CUFILE_FAIL="cuFileDriverOpen")


def test_a_missing_library_is_an_error_only_when_it_is_used(run_case: Run) -> None:
    run_case("cufile_cases:there_is_no_library", SLLM_CUFILE_LIBRARY="/no/such/libcufile.so")


def test_standard_input_stays_open(run_case: Run) -> None:
    run_case("cufile_cases:standard_input_stays_open", FAKE_CUFILE_CLOSES_STDIN="1")


def test_without_a_driver_the_reason_is_the_driver_s() -> None:
    code = (
        "from sllm_store import native\n"
        "assert native.cufile_unavailable_reason() == native.cuda_unavailable_reason() != ''\n"
    )
    environment = os.environ | {"SLLM_CUDA_LIBRARY": "/no/such/libcuda.so"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_a_driver_that_was_chosen_gets_no_cufile_of_the_system(fake_cuda: Path) -> None:
    code = (
        "from sllm_store import native\n"
        "assert 'SLLM_CUFILE_LIBRARY is not' in native.cufile_unavailable_reason()\n"
    )
    environment = os.environ | {"SLLM_CUDA_LIBRARY": str(fake_cuda), "SLLM_CUFILE_LIBRARY": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_it_has_no_queue() -> None:
    assert not native.has_queues("cufile")
