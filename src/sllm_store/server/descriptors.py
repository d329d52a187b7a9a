"""Hands the pool's read-only file descriptor to local clients over a raw Unix socket.

gRPC cannot pass descriptors. A client connects, gets one byte with the descriptor attached, and
the connection closes. Only processes of the server's own user (or root) are answered.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.native import SharedPool

_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 128


class DescriptorServer:
    """Listens on a Unix socket; every accepted connection gets one descriptor."""

    def __init__(self, path: Path, pool: SharedPool) -> None:
        """Bind to `path`, which must not exist; only its owner can connect."""
        self.path = path
        self._pool = pool
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(mask)
        self._socket.listen(_BACKLOG)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from the event loop."""
        loop.add_reader(self._socket.fileno(), self._answer)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop answering and remove the socket."""
        loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _answer(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        with connection:
            if _peer_uid(connection) not in {0, os.geteuid()}:
                return
            descriptor = self._pool.read_only_fd()
            try:
                socket.send_fds(connection, [b"\0"], [descriptor])
            except OSError:
                return  # The client is gone; there is nobody to tell.
            finally:
                os.close(descriptor)


def _peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid
