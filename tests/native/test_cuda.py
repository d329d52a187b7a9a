"""Device memory, IPC and copies, against a fake driver that checks every call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., None]


@pytest.mark.parametrize(
    "case",
    [
        "devices_describe_themselves",
        "memory_is_freed_with_its_last_view",
        "copies_round_trip",
        "pinned_memory_is_registered",
        "pinning_uses_a_context_that_exists",
        "a_step_without_reads_is_copied",
        "parallel_transfers_do_not_disturb_each_other",
        "a_copy_beyond_the_arena_is_refused_by_the_driver",
        "ipc_connects_two_processes",
        "a_lease_ends_after_the_mapping",
        "buffers_may_be_alive_at_exit",
    ],
)
def test_case(run_case: Run, case: str) -> None:
    run_case(case)


@pytest.mark.parametrize("delay_us", ["0", "300"])
def test_a_ring_slot_is_not_overwritten_before_its_copies_end(run_case: Run, delay_us: str) -> None:
    run_case("a_load_goes_to_two_devices_through_a_ring", FAKE_CUDA_COPY_DELAY_US=delay_us)


def test_out_of_memory_is_code_2(run_case: Run) -> None:
    run_case("out_of_memory_is_code_2", FAKE_CUDA_MEMORY=str(10 << 20))


@pytest.mark.parametrize(
    "failure",
    [
        "cuMemcpyHtoDAsync_v2:5",
        "cuEventRecord:5",
        "cuEventCreate:2",
        "cuEventSynchronize:3",
        "cuStreamCreate",
    ],
)
def test_a_failing_copy_fails_the_transfer(run_case: Run, failure: str) -> None:
    run_case("a_failing_copy_fails_the_transfer", FAKE_CUDA_FAIL=failure)


def test_a_cancel_ends_a_slow_transfer(run_case: Run) -> None:
    run_case("a_cancel_ends_a_slow_transfer", FAKE_CUDA_COPY_DELAY_US="20000")


def test_a_failing_driver_says_which_call(run_case: Run) -> None:
    run_case("a_failing_driver_says_which_call", FAKE_CUDA_FAIL="cuInit")


def test_a_missing_driver_is_an_error_only_when_it_is_used() -> None:
    code = (
        "from sllm_store import native\n"
        "buffer = native.HostBuffer(4096)\n"
        "assert not native.cuda_available()\n"
        "assert '/no/such/libcuda.so' in native.cuda_unavailable_reason()\n"
        "try:\n"
        "    native.device_count()\n"
        "except native.CudaError as error:\n"
        "    assert error.args == (native.cuda_unavailable_reason(), 3), error.args\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    environment = os.environ | {"SLLM_CUDA_LIBRARY": "/no/such/libcuda.so"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
