"""What one connection of the local socket is told: each reply with its length before it.

A reply can be sent by the thread that has worked it out. On its way through the event loop two
threads would have to wake up one after the other, which takes longer than to plan a load.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING

from sllm_store.local_wire import LENGTH

if TYPE_CHECKING:
    from types import TracebackType


class ClientGoneError(Exception):
    """The connection broke, or nothing comes any more: nobody is there to be told of it."""


class Replies:
    """Sends over a connection that does not block, until the with block is left.

    All but `try_send` is for the event loop alone.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Send over a connection, which stays the caller's."""
        self._connection = connection
        self._rest = b""  # Of replies that there was no room for.
        self._flushing = False
        self._open = True
        self._lock = threading.Lock()  # Of the three above: no thread sends once it is closed.

    def __enter__(self) -> Replies:
        """Return the same."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let no thread send any more."""
        with self._lock:
            self._open = False

    def try_send(self, reply: bytes) -> None:
        """Send a reply at once, from any thread; `flush` sends what there is no room for.

        If nobody is there any more it is dropped: who reads from the connection finds out.
        """
        data = LENGTH.pack(len(reply)) + reply
        with self._lock:
            if not self._open:
                return
            if not self._flushing and not self._rest:
                data = data[self._send(data) :]
            self._rest += data

    async def flush(self) -> None:
        """Wait until everything is sent; raise ClientGoneError where it cannot be."""
        while rest := self._take_rest():
            try:
                await asyncio.get_running_loop().sock_sendall(self._connection, rest)
            except OSError as error:
                raise ClientGoneError from error

    async def send(self, reply: bytes) -> None:
        """Send a reply, and wait until there is room for all of it."""
        self.try_send(reply)
        await self.flush()

    def send_descriptor(self, descriptor: int) -> None:
        """Send a descriptor, with one byte, and close it here."""
        try:
            socket.send_fds(self._connection, [b"\0"], [descriptor])
        except OSError as error:
            raise ClientGoneError from error
        finally:
            os.close(descriptor)

    def _send(self, data: bytes) -> int:
        """Send what there is room for; return how much that was."""
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _take_rest(self) -> bytes:
        """Return what is to be flushed: until that is done, nothing may be sent beside it."""
        with self._lock:
            rest, self._rest = self._rest, b""
            self._flushing = bool(rest)
        return rest
