"""`sllm-store pin`, `unpin`, `unload` and `clear`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def store(
    storage: Path,
    write_safetensors: Callable[..., object],
    start_store: Callable[..., StoreProcess],
) -> StoreProcess:
    write_safetensors(storage / "m")
    return start_store(storage)


def test_a_pinned_model_is_in_memory_until_it_is_unloaded(
    store: StoreProcess, run: Callable[..., Any]
) -> None:
    client = store.client()
    assert run("pin", "m", "--address", store.address).code == 0
    assert client.list_models()[0].pinned
    assert run("unpin", "m", "--address", store.address).code == 0
    assert not client.list_models()[0].pinned
    assert client.list_models()[0].host_bytes > 0
    assert run("unload", "m", "--address", store.address).code == 0
    assert client.list_models()[0].host_bytes == 0


def test_clear_empties_the_pool(store: StoreProcess, run: Callable[..., Any]) -> None:
    assert run("pin", "m", "--address", store.address).code == 0
    assert run("clear", "--address", store.address).out == "the store's memory is empty\n"
    assert store.client().status().pool_used_bytes == 0


@pytest.mark.parametrize("command", ["pin", "unpin", "unload"])
def test_an_unknown_name_is_an_error(
    store: StoreProcess, run: Callable[..., Any], command: str
) -> None:
    done = run(command, "none", "--address", store.address)
    assert done.code == 1
    assert "no checkpoint 'none'" in done.err


@pytest.mark.parametrize("args", [["pin", "m"], ["unpin", "m"], ["unload", "m"], ["clear"]])
def test_without_a_store_they_say_how_to_start_one(
    run: Callable[..., Any], args: list[str]
) -> None:
    done = run(*args)
    assert done.code == 1
    assert "start one with `sllm-store start`" in done.err
