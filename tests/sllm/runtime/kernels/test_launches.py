"""Launches that were not measured: enough programs for the device, and no share without work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.runtime.kernels.launches import (
    candidate_denses,
    candidate_gemvs,
    guess_dense,
    guess_gemv,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sllm.runtime.kernels.launches import GemvLaunch

H200 = 132


@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize(("rows", "groups"), [(4096, 128), (1024, 128), (576, 18), (128256, 128)])
def test_a_guess_has_programs_for_every_processor_if_the_matrix_allows(
    rows: int, groups: int, tokens: int
) -> None:
    launch = guess_gemv(rows, groups, tokens=tokens, processors=H200)
    programs = -(-rows // launch.rows) * launch.shares
    assert programs >= min(rows, 4 * H200)
    assert launch.rows * tokens <= 8


def test_small_matrices_are_shared_along_their_rows() -> None:
    launch = guess_gemv(64, 448, tokens=1, processors=H200)
    assert launch.rows == 1
    assert launch.shares == 4


@pytest.mark.parametrize(("rows", "warps"), [(128256, 1), (4096, 1), (1024, 4), (64, 4)])
def test_a_row_of_floats_has_more_warps_where_there_are_few_rows(rows: int, warps: int) -> None:
    launch = guess_dense(rows, 512, processors=H200)
    assert launch.rows == 1
    assert launch.warps == warps
    assert rows * launch.shares >= min(4 * H200, rows * 4)


@pytest.mark.parametrize("candidates", [candidate_gemvs, candidate_denses])
@pytest.mark.parametrize("groups", [18, 128, 448])
def test_candidates_are_distinct_and_leave_no_program_without_work(
    groups: int, candidates: Callable[[int], Iterator[GemvLaunch]]
) -> None:
    found = list(candidates(groups))
    assert len(found) == len(set(found))
    assert all(one.shares == 1 or one.groups * one.shares <= groups for one in found)
