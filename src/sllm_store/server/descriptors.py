"""Hands the pool's memory to local clients over a raw Unix socket, and keeps their leases.

gRPC cannot pass descriptors. A client sends the id of a lease and gets one byte with the pool's
read-only descriptor attached. The lease then lives as long as the connection: it ends when the
client unmaps the memory or dies. Only processes of the server's own user (or root) are answered.
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
    from sllm_store.server.sessions import Sessions

LEASE_ID_BYTES = 32
REQUEST_TIMEOUT_S = 5.0
_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 1024


class DescriptorServer:
    """Listens on a Unix socket; every connection is one lease."""

    def __init__(self, path: Path, pool: SharedPool, sessions: Sessions) -> None:
        """Bind to `path`, which must not exist; only its owner can connect."""
        self.path = path
        self._pool = pool
        self._sessions = sessions
        self._connections: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(mask)
        self._socket.listen(_BACKLOG)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from the event loop."""
        loop.add_reader(self._socket.fileno(), self._accept)

    async def close(self) -> None:
        """Stop answering, end every lease and remove the socket."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self.path.unlink(missing_ok=True)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        connection.settimeout(0.0)
        task = asyncio.get_running_loop().create_task(self._keep(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _keep(self, connection: socket.socket) -> None:
        """Serve one connection until it ends; everything that goes wrong with it ends it."""
        loop = asyncio.get_running_loop()
        with connection:
            if _peer_uid(connection) not in {0, os.geteuid()}:
                return
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    lease_id = await _receive(loop, connection, LEASE_ID_BYTES)
            except (TimeoutError, OSError):
                return
            lease = self._sessions.attach(lease_id.decode(errors="replace"))
            if lease is None:
                return
            try:
                self._send_descriptor(connection)
                await loop.sock_recv(connection, 1)
            except OSError:
                return  # The client is gone, and with it its lease.
            finally:
                self._sessions.detach(lease)

    def _send_descriptor(self, connection: socket.socket) -> None:
        descriptor = self._pool.read_only_fd()
        try:
            socket.send_fds(connection, [b"\0"], [descriptor])
        finally:
            os.close(descriptor)


async def _receive(loop: asyncio.AbstractEventLoop, connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or fewer if the peer closes first."""
    received = b""
    while len(received) < size:
        more = await loop.sock_recv(connection, size - len(received))
        if not more:
            break
        received += more
    return received


def _peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid
