"""A store's socket never takes the place of anything that is no socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sllm_store.errors import InvalidRequestError
from sllm_store.server.socket_file import socket_owned
from tests.store_process import open_descriptors

SERVES = Path("/nowhere/models")


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt.local"])
def test_a_file_in_a_sockets_place_is_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with (
        pytest.raises(InvalidRequestError, match=r"notes.* is there and is no socket: remove it"),
        socket_owned(tmp_path / "notes.txt", serves=SERVES),
    ):
        pass
    assert (tmp_path / name).read_text() == "precious"


def test_a_directory_in_a_sockets_place_is_said_plainly(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidRequestError, match="is no socket"),
        socket_owned(tmp_path, serves=SERVES),
    ):
        pass


def test_sockets_that_a_killed_store_left_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "store.sock"
    for left in (path, tmp_path / "store.sock.local"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(left))
    with socket_owned(path, serves=SERVES):
        assert not path.exists()
        assert not (tmp_path / "store.sock.local").exists()


def test_one_at_a_time_owns_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sock"
    before = open_descriptors(os.getpid())
    with (
        socket_owned(path, serves=SERVES),
        pytest.raises(InvalidRequestError, match="a store is already running at unix:"),
        socket_owned(path, serves=SERVES),
    ):
        pass
    with socket_owned(path, serves=SERVES):
        pass
    assert open_descriptors(os.getpid()) == before


def test_where_no_socket_can_be_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidRequestError, match=r"cannot make the socket's directory .*--socket"),
        socket_owned(tmp_path / "file" / "store.sock", serves=SERVES),
    ):
        pass
    (tmp_path / "a.lock").mkdir()
    with (
        pytest.raises(InvalidRequestError, match=r"cannot make a socket at .*Is a directory"),
        socket_owned(tmp_path / "a", serves=SERVES),
    ):
        pass


def test_what_is_served_is_told_beside_the_socket_as_long_as_it_is_owned(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "latest").symlink_to("models")
    link = tmp_path / "store.sock.local.serves"
    link.symlink_to("1:/what/a/killed/store/served")
    with socket_owned(tmp_path / "store.sock", serves=tmp_path / "latest"):
        assert str(link.readlink()) == f"{os.getpid()}:{(tmp_path / 'models').resolve()}"
    assert not link.is_symlink()
    link.write_text("precious")
    with socket_owned(tmp_path / "store.sock", serves=SERVES):
        assert link.read_text() == "precious"
    assert link.read_text() == "precious"
