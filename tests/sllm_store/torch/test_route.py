"""Who loads a checkpoint is decided once, said in the log, and never guessed wrongly."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm_store import client, local_connection
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    PoolTooSmallError,
    StoreUnavailableError,
)
from sllm_store.torch import load_dict, route, save_dict
from sllm_store.torch.route import choose_route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store of the person who runs the tests is asked."""
    monkeypatch.setenv("SLLM_STORE_ADDRESS", f"unix:{tmp_path}/nobody.sock")
    monkeypatch.setenv("STORAGE_PATH", str(tmp_path / "default"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with the checkpoint org/a of one tensor full of ones."""
    save_dict({"w": torch.ones(1000)}, tmp_path / "models" / "org" / "a")
    return tmp_path / "models"


def test_without_a_store_this_process_loads_and_says_so(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sllm_store"):
        loaded = load_dict(models / "org" / "a", "cpu")
    assert (loaded.store, loaded.tier) == ("in-process", "disk")
    said = [record.getMessage() for record in caplog.records if "in-process" in record.getMessage()]
    assert len(said) == 1


def test_a_running_store_is_used_and_named(
    models: Path,
    start_store: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = start_store(models)
    monkeypatch.setenv("SLLM_STORE_ADDRESS", store.address)
    with caplog.at_level(logging.INFO, logger="sllm_store"):
        first = load_dict("org/a", "cpu", models)
        second = load_dict(models / "org" / "a", "cpu")
    assert (first.store, first.tier) == (store.address, "disk")
    assert (second.store, second.tier) == (store.address, "host")
    assert torch.equal(first["w"], torch.ones(1000))
    first["w"].zero_()
    assert torch.equal(second["w"], torch.ones(1000))
    assert sum(store.address in record.getMessage() for record in caplog.records) == 2


def test_shared_memory_needs_a_store(
    models: Path,
    tmp_path: Path,
    start_store: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for how in (None, "in-process"):
        with pytest.raises(InvalidRequestError, match="start one with `sllm-store start`"):
            load_dict(models / "org" / "a", "cpu", store=how, shared=True)
    store = start_store(models)
    monkeypatch.setenv("SLLM_STORE_ADDRESS", store.address)
    shared = load_dict(models / "org" / "a", "cpu", shared=True)
    assert shared.store == store.address
    shared["w"].zero_()  # On the host it is private.
    assert torch.equal(load_dict("org/a", "cpu", shared=True)["w"], torch.ones(1000))
    save_dict({"w": torch.ones(10)}, tmp_path / "elsewhere")
    with pytest.raises(InvalidRequestError, match="shared=True wants memory of a store"):
        load_dict(tmp_path / "elsewhere", "cpu", shared=True)


def test_in_process_never_asks_a_store(
    models: Path, start_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLLM_STORE_ADDRESS", start_store(models).address)
    monkeypatch.setattr(client, "SllmStoreClient", None)
    assert load_dict(models / "org" / "a", "cpu", store="in-process").store == "in-process"


def test_a_checkpoint_outside_of_the_store_is_loaded_here(
    models: Path, tmp_path: Path, start_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = start_store(models)
    monkeypatch.setenv("SLLM_STORE_ADDRESS", store.address)
    save_dict({"w": torch.zeros(3)}, tmp_path / "elsewhere" / "org" / "a")
    loaded = load_dict("org/a", "cpu", tmp_path / "elsewhere")
    assert loaded.store == "in-process"
    assert torch.equal(loaded["w"], torch.zeros(3))
    with pytest.raises(InvalidRequestError, match="outside of it"):
        load_dict("org/a", "cpu", tmp_path / "elsewhere", store=store.address)


def test_a_checkpoint_larger_than_the_pool_is_loaded_here_unless_the_store_was_named(
    tmp_path: Path, start_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dict({"w": torch.ones(2 << 20)}, tmp_path / "models" / "large")
    store = start_store(tmp_path / "models", pool_bytes=4 << 20)
    monkeypatch.setenv("SLLM_STORE_ADDRESS", store.address)
    loaded = load_dict("large", "cpu")
    assert loaded.store == "in-process"
    assert torch.equal(loaded["w"], torch.ones(2 << 20))
    with pytest.raises(PoolTooSmallError, match=r"large needs 8\.0 MB of the host pool"):
        load_dict("large", "cpu", store=store.address)


def test_a_name_that_only_the_store_knows_is_found(
    models: Path, start_store: Callable[..., Any]
) -> None:
    store = start_store(models)
    loaded = load_dict("org/a", "cpu", store=store.address)
    assert loaded.store == store.address
    assert torch.equal(loaded["w"], torch.ones(1000))


def test_a_link_inside_the_storage_path_is_served_by_its_name(
    models: Path, start_store: Callable[..., Any]
) -> None:
    store = start_store(models)
    (models / "latest").symlink_to("org/a")
    assert load_dict(models / "latest", "cpu", store=store.address).store == store.address


def test_a_named_store_that_does_not_answer_is_an_error_and_how_to_start_one(
    models: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailableError, match="sllm-store start"):
        load_dict(models / "org" / "a", "cpu", store=f"unix:{tmp_path}/no.sock")
    with pytest.raises(StoreUnavailableError, match="sllm-store start"):
        load_dict(models / "org" / "a", "cpu", store="127.0.0.1:1")


@pytest.fixture
def stopped(
    request: pytest.FixtureRequest,
    models: Path,
    start_store: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """The address of a store that has served a load and does nothing now; it is the default."""
    store = start_store(models, host="127.0.0.1", port=0)
    address = str(store.addresses[request.param])
    monkeypatch.setenv("SLLM_STORE_ADDRESS", address)
    assert load_dict("org/a", "cpu").store == address
    monkeypatch.setattr(local_connection, "FRESH_S", 0)
    os.kill(store.pid, signal.SIGSTOP)
    yield address
    os.kill(store.pid, signal.SIGCONT)


@pytest.mark.parametrize("stopped", [0, 1], ids=["unix", "tcp"], indirect=True)
def test_a_store_that_says_nothing_is_not_waited_for_long(
    stopped: str, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(route, "LOOK_TIMEOUT_S", 0.2)
    assert load_dict(models / "org" / "a", "cpu").store == "in-process"
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said.startswith("this process loads by itself: the store at ")
    assert stopped.removeprefix("unix:") in said


@pytest.mark.parametrize("stopped", [0], ids=["unix"], indirect=True)
def test_a_store_that_was_named_is_waited_for(
    stopped: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_connection, "REPLY_TIMEOUT_S", 0.3)
    with pytest.raises(StoreUnavailableError, match=r"does not answer: it said nothing for 0\.3 s"):
        load_dict(models / "org" / "a", "cpu", store=stopped)


def test_a_broken_checkpoint_is_an_error_with_and_without_a_store(
    models: Path, start_store: Callable[..., Any]
) -> None:
    store = start_store(models)
    data = models / "org" / "a" / "tensor.data_0"
    data.write_bytes(data.read_bytes()[:100])
    for address in (None, "in-process", store.address):
        with pytest.raises(InvalidCheckpointError, match=r"tensor\.data_0"):
            load_dict(models / "org" / "a", "cpu", store=address)


def test_names_are_looked_for_where_upstream_looks_and_then_here(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    assert choose_route("org/a").path == models / "org" / "a"
    save_dict({"w": torch.zeros(1)}, tmp_path / "default" / "org" / "a")
    assert choose_route("org/a").path == tmp_path / "default" / "org" / "a"
    assert choose_route("org/a", models).path == models / "org" / "a"
    assert choose_route("./models/org/a", tmp_path).path == tmp_path / "models" / "org" / "a"


def test_a_checkpoint_that_is_nowhere_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_dict("no/such", "cpu")
    assert str(tmp_path / "default" / "no" / "such") in str(caught.value)
