"""A client's side of the local socket: calls to the store, and memory that a connection holds."""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sllm_store.config import default_socket_path, serves_link_path, serves_text
from sllm_store.errors import BY_NAME, StoreError, StoreUnavailableError
from sllm_store.local_wire import LENGTH, find_peer
from sllm_store.proto import storage_pb2 as pb
from sllm_store.tiers.held import HeldMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

REPLY_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 2.0
# Whoever answered so lately is there: asking again takes longer than a small load out of the pool.
FRESH_S = 2.0
_TIMEVAL = struct.Struct("@ll")


def require_trusted(socket_path: Path) -> None:
    """Raise StoreUnavailableError if another user may have put what listens there.

    They could give us any weights. Anybody can make our default directory in /tmp before us. Root
    may talk to a user's store, elsewhere than at its own default.
    """
    user = os.geteuid()
    try:
        owner = socket_path.parent.stat().st_uid
    except OSError:
        return  # Nothing listens there, as whoever connects will be told.
    default = default_socket_path(os.environ, uid=os.getuid())
    named_by_root = user == 0 and socket_path != default
    if owner not in {0, user} and not named_by_root:
        raise StoreUnavailableError(
            f"no store of yours is at unix:{socket_path}: {socket_path.parent} belongs to user "
            f"{owner}, who could pose as the store; remove it, or name another address"
        )


@dataclass(frozen=True, slots=True)
class _Served:
    """What a server serves, and when it said so."""

    server: tuple[int, int, int]
    path: str
    told_s: float


# By the socket where each server was last met: a process meets few.
_SERVED: dict[str, _Served] = {}


class LocalConnection:
    """One connection to a store of this machine. Used by one thread at a time.

    Every method raises the store's errors, StoreUnavailableError when it is not there any more.
    After an error only close() is left.
    """

    def __init__(self, path: str, *, address: str) -> None:
        """Connect to the socket at `path`; messages name the store's `address`."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise StoreUnavailableError(
                f"no store is running at {address}: start one with `sllm-store start` (its local "
                f"socket {path}: {error}; loads work on the store's own machine, as its own user)"
            ) from error
        # The kernel waits for whole messages: each look at one in part is a turn for the lock.
        self._socket.settimeout(None)
        self._wait_at_most(REPLY_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """End the connection, and with it a load that runs; mapped memory stays held."""
        self._socket.close()

    def call(self, request: Any) -> Any:
        """Return the reply to a LocalRequest that is no load."""
        self.ask(request)
        return self.answer()

    def ask(self, request: Any) -> None:
        """Send a LocalRequest that is no load; its answer has to be taken before anything else."""
        data = request.SerializeToString()
        try:
            self._socket.sendall(LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise self._lost(error) from error

    def answer(self) -> Any:
        """Wait for the reply to what was asked."""
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        reply = pb.LocalReply.FromString(self._read(size))
        if reply.WhichOneof("reply") == "error":
            raise BY_NAME.get(reply.error.name, StoreError)(reply.error.message)
        return reply

    def status(self) -> Any:
        """Return what the store says of itself."""
        return self.call(pb.LocalRequest(status=pb.GetStatusRequest())).status

    def storage_path(self, *, timeout_s: float | None = None) -> str:
        """Return the directory whose checkpoints the store serves; it is asked once, or never.

        timeout_s: waits no longer, but asks again if it has said nothing for FRESH_S.
        """
        server, now_s = self._server(), time.monotonic()
        known = _SERVED.get(self._path)
        if known is None or known.server != server:
            written = self._written(server[0])
            known = None if written is None else _Served(server, written, -math.inf)
        if known is None or (timeout_s is not None and now_s - known.told_s > FRESH_S):
            self._wait_at_most(timeout_s or REPLY_TIMEOUT_S)
            known = _Served(server, self.status().storage_path, now_s)
            self._wait_at_most(REPLY_TIMEOUT_S)
        _SERVED[self._path] = known
        return known.path

    def load(self, request: Any) -> Iterator[Any]:
        """Start a load by its LoadRequest; return its LoadEvents, the last one `done`."""
        self.ask(pb.LocalRequest(load=request))
        return self._events()

    @contextmanager
    def held_memory(self) -> Iterator[HeldMemory]:
        """Yield what to map memory with, after a load whose last event says that it is held."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        except OSError as error:
            raise self._lost(error) from error
        if not descriptors:
            raise self._lost("it sent no descriptor")
        try:
            yield HeldMemory(connection=self._socket.fileno(), pool=descriptors[0])
        finally:
            os.close(descriptors[0])

    def _wait_at_most(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        seconds = int(timeout_s)
        limit = _TIMEVAL.pack(seconds, int((timeout_s - seconds) * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    def _server(self) -> tuple[int, int, int]:
        """Tell this server from any other: by its process, and by the socket that it has made."""
        try:
            bound = Path(self._path).stat()
            process = find_peer(self._socket).pid
        except OSError as error:
            raise self._lost(error) from error
        return process, bound.st_ino, bound.st_ctime_ns

    def _written(self, process: int) -> str | None:
        """Return what a server says beside its socket that it serves, None if it says nothing."""
        try:
            text = str(serves_link_path(Path(self._path)).readlink())
        except OSError:
            return None
        mine = serves_text(process, "")
        return text.removeprefix(mine) if text.startswith(mine) else None

    def _events(self) -> Iterator[Any]:
        done = False
        while not done:
            event = self.answer().event
            done = event.done
            yield event

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            try:
                count = self._socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise self._lost(f"it said nothing for {self._timeout_s:g} s") from None
            except OSError as error:
                raise self._lost(error) from error
            if not count:
                raise self._lost("it closed the connection")
            done += count
        return bytes(data)

    def _lost(self, why: object) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store at {self._path} does not answer: {why}; was it stopped, or does it run as "
            "another user?"
        )
