"""Weights open on the device asked for, within what is allowed there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import BudgetError
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import open_weights, place_weights
from sllm_store.errors import InvalidRequestError
from sllm_store.groups.head_start import HeadStart
from tests.sllm.runtime.tiny_models import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model("llama").theirs.save_pretrained(path)
    return path


def test_on_the_cpu_the_smaller_budget_counts_and_all_stays_without_one(path: Path) -> None:
    with open_weights(path) as source:
        everything = source.residency.device_bytes
        assert not source.residency.streamed
    for budgets in ((everything - 1, None), (None, everything - 1), (everything - 1, everything)):
        device, host = budgets
        with open_weights(path, device_budget_bytes=device, host_budget_bytes=host) as source:
            assert source.residency.streamed == source.residency.disk
            assert source.residency.device_bytes < everything
            assert source.residency.host_bytes == 0


def test_what_comes_ahead_for_nobody_is_ended_before_anything_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(HeadStart, "close", lambda _: closed.append(True))
    ahead = HeadStart(path, device=999)
    with place_weights(ModelGroups.open(path, ahead.stored(60)), device="cpu", head_start=ahead):
        assert closed == [True]
    assert ahead.arrived(60) is None


def test_what_else_is_on_the_device_counts(path: Path) -> None:
    with open_weights(path) as source:
        everything = source.residency.device_bytes
    with pytest.raises(BudgetError, match="and its caches"):
        open_weights(path, device_budget_bytes=everything, other_bytes=everything)


def test_an_unknown_device_is_refused(path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="use cpu, or cuda"):
        open_weights(path, device="meta")
