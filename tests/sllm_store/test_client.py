"""The client's own rules: addresses, errors by class, closing."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sllm_store import errors, local_connection
from sllm_store.client import SllmStoreClient, default_address, is_running
from sllm_store.config import local_socket_path, serves_link_path
from sllm_store.errors import InvalidRequestError, StoreUnavailableError
from sllm_store.local_connection import LocalConnection
from tests.store_process import random_tensors, read_tensors, write_upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_upstream(tmp_path / "models" / "m", random_tensors(2, 1000))
    return tmp_path / "models"


def test_the_default_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLLM_STORE_ADDRESS", "127.0.0.1:1")
    assert default_address() == "127.0.0.1:1"
    monkeypatch.delenv("SLLM_STORE_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_address().startswith("unix:/run/user/7/sllm-store-")


@pytest.mark.parametrize("address", ["unix:/nowhere/s", "127.0.0.1:1", "nonsense", "host:port"])
def test_nothing_runs_at_an_address_that_nobody_has(address: str) -> None:
    assert not is_running(address)


def test_the_servers_error_arrives_as_its_own_class(start_store: Start, models: Path) -> None:
    client = start_store(models).client()
    with pytest.raises(errors.CheckpointNotFoundError, match="no checkpoint 'x'") as caught:
        client.register_model("x")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    with pytest.raises(errors.CheckpointNotFoundError, match="no checkpoint 'x'"):
        client.load("x")


def test_every_error_has_a_status_and_a_name() -> None:
    for name, error in errors.BY_NAME.items():
        assert error.__name__ == name
        assert isinstance(error.status, str)
        assert getattr(grpc.StatusCode, error.status)
    subclasses = {errors.StoreError, *errors.StoreError.__subclasses__()}
    assert subclasses <= set(errors.BY_NAME.values())


def test_each_server_at_a_socket_is_asked_what_it_serves(
    start_store: Start, models: Path, tmp_path: Path
) -> None:
    socket_path, others = tmp_path / "one.sock", tmp_path / "others"
    others.mkdir()
    with SllmStoreClient(f"unix:{socket_path}") as client:
        for served in (models, others, models):
            store = start_store(served, socket_path=socket_path)
            assert [client.storage_path() for _ in range(2)] == [served, served]
            store.stop()
            with pytest.raises(errors.StoreUnavailableError):
                client.storage_path()


@pytest.mark.parametrize("written", [None, "1:/another/servers"])
def test_what_a_server_has_not_written_down_it_is_asked(
    start_store: Start, models: Path, monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    store = start_store(models)
    link = serves_link_path(local_socket_path(Path(store.address.removeprefix("unix:"))))
    asked = []
    status = LocalConnection.status

    def ask(connection: LocalConnection) -> Any:
        asked.append(connection)
        return status(connection)

    monkeypatch.setattr(LocalConnection, "status", ask)
    assert store.client().storage_path() == models
    assert not asked
    monkeypatch.setattr(local_connection, "_SERVED", {})
    link.unlink()
    if written is not None:
        link.symlink_to(written)
    assert store.client().storage_path() == models
    assert len(asked) == 1
    assert [store.client().storage_path(timeout_s=10) for _ in range(2)] == [models, models]
    assert len(asked) == 1  # It has just answered.
    monkeypatch.setattr(local_connection, "FRESH_S", 0.0)
    assert store.client().storage_path(timeout_s=10) == models
    assert len(asked) == 2


def test_a_store_that_says_nothing_is_a_deadline_error(start_store: Start, models: Path) -> None:
    store = start_store(models)
    client = store.client()
    client.list_models()
    os.kill(store.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.DeadlineError, match="did not answer before the call's time"):
            client.set_pinned("m", pinned=True, timeout_s=0.2)
    finally:
        os.kill(store.pid, signal.SIGCONT)
    assert client.list_models()


def test_closing_twice_is_fine_and_memory_stays(start_store: Start, models: Path) -> None:
    client = start_store(models).client()
    loaded = client.load("m")
    client.close()
    client.close()
    assert read_tensors(loaded) == random_tensors(2, 1000)


def test_the_client_says_where_it_got_a_model(start_store: Start, models: Path) -> None:
    store = start_store(models)
    loaded = store.client().load("m")
    assert loaded.store == store.address
    assert loaded.directory == models / "m"
    assert loaded.format == "sllm"
    assert loaded.devices == ("cpu",)


def test_an_empty_tensor_needs_no_memory(start_store: Start, tmp_path: Path) -> None:
    write_upstream(tmp_path / "models" / "empty", {"nothing": b""})
    loaded = start_store(tmp_path / "models").client().load("empty")
    assert loaded.tensors[0].shape == (0,)


def test_a_token_that_no_header_carries_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="use printable ASCII"):
        SllmStoreClient("127.0.0.1:1", token="pässword")


def test_an_address_without_a_path_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'unix:' names no socket: write unix:/path"):
        SllmStoreClient("unix:")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("user", [0, 1000])
def test_what_another_user_may_have_put_at_the_default_address_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.delenv("SLLM_STORE_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: user)
    path = Path(default_address().removeprefix("unix:"))
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as posing:
        posing.bind(str(path))
        posing.listen()
        assert is_running()
        os.chown(path.parent, 12345, 12345)
        assert not is_running()
        with pytest.raises(StoreUnavailableError, match="belongs to user 12345, who could pose"):
            SllmStoreClient()
