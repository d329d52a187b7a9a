"""A step's buffer may be an arena in device memory; copies of it never pass through the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]
CASES = "device_source_cases"


@pytest.mark.parametrize("peers", ["0", "1"])
def test_an_arena_is_copied_within_and_across_devices(run_case: Run, peers: str) -> None:
    case = f"{CASES}:an_arena_is_copied_within_and_across_devices"
    run_case(case, FAKE_CUDA_PEERS=peers, FAKE_CUDA_COPY_DELAY_US="200")


def test_host_and_device_sources_mix(run_case: Run) -> None:
    run_case(f"{CASES}:host_and_device_sources_mix", FAKE_CUDA_COPY_DELAY_US="200")


def test_device_memory_is_neither_decoded_nor_copied_to_the_host(run_case: Run) -> None:
    run_case(f"{CASES}:device_memory_is_neither_decoded_nor_copied_to_the_host")


# The second attribute asked for is the ordinal of what is known to be device memory.
@pytest.mark.parametrize(
    "failure", ["cuMemcpyPeerAsync", "cuPointerGetAttribute:2", "cuDeviceCanAccessPeer"]
)
def test_a_failing_copy_fails_the_transfer(run_case: Run, failure: str) -> None:
    run_case(f"{CASES}:a_failing_copy_fails_the_transfer", FAKE_CUDA_FAIL=failure)
