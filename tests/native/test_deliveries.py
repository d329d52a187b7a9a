"""Complete steps go to host memory and to GPUs, raw or decoded, over one link or several."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]
FOUR = {"FAKE_CUDA_DEVICES": "4"}


FAILURES = [
    "cuCtxEnablePeerAccess",
    "cuEventCreate:4",
    "cuEventRecord:6",
    "cuEventSynchronize:3",
    "cuLaunchKernel:2",
    "cuMemAlloc_v2:4",
    "cuMemHostRegister_v2",
    "cuMemcpyAsync:2",
    "cuMemcpyHtoDAsync_v2:5",
    "cuMemcpyPeerAsync",
    "cuMemsetD32Async",
    "cuModuleLoadDataEx",
    "cuStreamCreate:3",
    "cuStreamWaitEvent:3",
]


def case(name: str) -> str:
    return f"delivery_cases:{name}"


def from_then_on(failure: str) -> str:
    """Let a driver's function fail from its call of this number on."""
    name, _, first = failure.partition(":")
    return ",".join(f"{name}:{count}" for count in range(int(first or 1), 100))


@pytest.mark.parametrize("delay_us", ["0", "200"])
def test_bytes_are_those_of_a_plain_load(run_case: Run, delay_us: str) -> None:
    run_case(case("bytes_are_those_of_a_plain_load"), FAKE_CUDA_COPY_DELAY_US=delay_us, **FOUR)


def test_big_steps_are_cut(run_case: Run) -> None:
    run_case(case("big_steps_are_cut"), **FOUR)


def test_a_corrupt_segment_is_named(run_case: Run) -> None:
    run_case(case("a_corrupt_segment_is_named"), **FOUR)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_driver_failure_ends_the_transfer(run_case: Run, failure: str) -> None:
    run_case(
        case("a_driver_failure_ends_the_transfer"), FAKE_CUDA_FAIL=from_then_on(failure), **FOUR
    )


@pytest.mark.parametrize("failure", FAILURES)
def test_what_a_failed_transfer_used_is_not_kept(run_case: Run, failure: str) -> None:
    failures = from_then_on(failure)
    run_case(case("what_a_failed_transfer_used_is_not_kept"), FAKE_CUDA_FAIL=failures, **FOUR)


@pytest.mark.parametrize(
    "name",
    [
        "what_links_need_is_kept_for_the_next_transfer",
        "what_is_kept_for_links_is_bounded",
        "a_link_that_met_a_corrupt_segment_is_not_kept",
    ],
)
def test_links_keep_what_they_need_of_gpus(run_case: Run, name: str) -> None:
    run_case(case(name), **FOUR)


def test_a_cancel_ends_a_slow_transfer(run_case: Run) -> None:
    run_case(case("a_cancel_ends_a_slow_transfer"), FAKE_CUDA_COPY_DELAY_US="5000", **FOUR)


def test_a_neighbour_without_peer_access_is_refused(run_case: Run) -> None:
    run_case(case("a_neighbour_without_peer_access_is_refused"), FAKE_CUDA_PEERS="0")


def test_all_links_of_a_fan_in_are_used(run_case: Run) -> None:
    run_case(case("all_links_of_a_fan_in_are_used"), FAKE_CUDA_COPY_DELAY_US="10000", **FOUR)
