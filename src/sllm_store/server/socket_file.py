"""The file of a store's Unix socket: one store at a time has it, and nothing else is harmed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from sllm_store.config import local_socket_path, serves_link_path, serves_text
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ELSEWHERE = "name another with --socket"


@contextlib.contextmanager
def socket_owned(path: Path, *, serves: Path) -> Iterator[None]:
    """Own the path: one store at a time, sockets that a killed one left removed.

    A link beside them tells clients which storage path it serves: where there can be none, they
    ask. Raises InvalidRequestError where a store has the path, or where no socket can be.
    """
    _make_directory(path.parent)
    lock = _lock(path)
    try:
        leftovers = (path, local_socket_path(path))
        for leftover in leftovers:
            _remove_socket(leftover)
        with _told(serves_link_path(local_socket_path(path)), serves):
            try:
                yield
            finally:
                for leftover in leftovers:
                    leftover.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
    except OSError as error:
        raise InvalidRequestError(
            f"cannot make the socket's directory {directory}: {error.strerror}; {_ELSEWHERE}"
        ) from error
    if owner not in {0, os.geteuid()}:
        raise InvalidRequestError(
            f"{directory} belongs to user {owner}, who could pose as the store: remove it, or "
            f"{_ELSEWHERE}"
        )


def _lock(path: Path) -> int:
    """Return a descriptor of the lock beside the socket, which is held as long as it is open."""
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot make a socket at {path}: {lock_path}: {error.strerror}; {_ELSEWHERE}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InvalidRequestError(
            f"a store is already running at unix:{path}: stop it, or name another --socket"
        ) from error
    return lock


def _remove_socket(path: Path) -> None:
    """Remove what a killed store left, which is a socket and nothing else."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise InvalidRequestError(f"{path} is there and is no socket: remove it, or {_ELSEWHERE}")
    path.unlink()


@contextlib.contextmanager
def _told(link: Path, serves: Path) -> Iterator[None]:
    """Have a link that tells what this process serves, unless something else is in its place."""
    with contextlib.suppress(OSError):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(serves_text(os.getpid(), str(serves.resolve())))
    try:
        yield
    finally:
        if link.is_symlink():
            link.unlink()
