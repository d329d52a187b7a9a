"""Reaching a store, or finding that none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store.cli.connection import connected, if_running
from sllm_store.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture(autouse=True)
def own_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLLM_STORE_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_a_store_that_was_named_must_run(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreUnavailableError, match="start one with `sllm-store start`"),
        if_running(f"unix:{tmp_path}/none.sock"),
    ):
        pass


def test_ones_own_store_may_not_run() -> None:
    with if_running(None) as client:
        assert client is None


def test_a_command_that_needs_a_store_says_where_it_looked(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreUnavailableError, match=f"no store is running at unix:{tmp_path}"),
        connected(None),
    ):
        pass


def test_a_running_store_is_reached(
    start_store: Callable[..., StoreProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = start_store(tmp_path)
    with connected(store.address) as client:
        assert client.status().pid == store.pid
    monkeypatch.setenv("SLLM_STORE_ADDRESS", store.address)
    with if_running(None) as own:
        assert own is not None
        assert own.address == store.address
