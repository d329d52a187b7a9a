"""The local socket: plans and loads for processes of this machine, one connection a load.

A raw Unix stream socket with length-prefixed messages. It can do what gRPC cannot, pass the pool's
descriptor and tell a client's death by its connection, and it costs a tenth of a gRPC call. What a
load brought stays held until the client closes the connection, or dies. Only processes of the
server's own user (or root) are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from sllm_store.errors import InvalidRequestError
from sllm_store.local_wire import LENGTH, find_peer
from sllm_store.proto import storage_pb2 as pb
from sllm_store.server.edge import describe_failure
from sllm_store.server.replies import ClientGoneError, Replies
from sllm_store.server.status import describe_status

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.server.engine import Engine
    from sllm_store.server.loading import Loading, WantedLoad
    from sllm_store.server.loads import LoadJob, LoadResult

REQUEST_BYTES_MAX = 64 << 20
REQUEST_TIMEOUT_S = 60.0
PROGRESS_INTERVAL_S = 0.1
SPENT_MAX_S = 10.0
ACCEPT_AGAIN_S = 1.0
_BACKLOG = 1024
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CALLS = {"status": "GetStatus", "plan": "PlanLoad", "load": "Load"}  # As metrics name them.

log = logging.getLogger(__name__)


class LocalServer:
    """Listens on a Unix socket and answers every connection in a task of its own."""

    def __init__(self, path: Path, engine: Engine, loading: Loading) -> None:
        """Bind to `path`, which must not exist; only its owner can connect."""
        self.path = path
        self._engine = engine
        self._loading = loading
        self._connections: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(mask)
        self._socket.listen(_BACKLOG)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from the event loop."""
        self._resting = None
        loop.add_reader(self._socket.fileno(), self._accept)

    async def close(self) -> None:
        """Stop answering, end every load and lease, and remove the socket."""
        if self._resting is not None:
            self._resting.cancel()
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
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._rest(error)
            return
        connection.settimeout(0.0)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _rest(self, error: OSError) -> None:
        """Look away for a while: a socket that nothing can be accepted from stays readable."""
        log.warning(
            "no more clients for now: %s; %d are connected, raise the limit of open files "
            "(ulimit -n)",
            error.strerror,
            len(self._connections),
        )
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        self._resting = loop.call_later(ACCEPT_AGAIN_S, self.start, loop)

    async def _serve(self, connection: socket.socket) -> None:
        """Serve one connection until it ends; everything that goes wrong with it ends it."""
        with connection, Replies(connection) as replies:
            if find_peer(connection).uid in {0, os.geteuid()}:
                await _Conversation(connection, replies, self._engine, self._loading).run()


class _Conversation:
    """One connection."""

    def __init__(
        self, connection: socket.socket, replies: Replies, engine: Engine, loading: Loading
    ) -> None:
        self._connection = connection
        self._replies = replies
        self._engine = engine
        self._loading = loading
        self._loop = asyncio.get_running_loop()
        self._told = False  # That its load has ended.

    async def run(self) -> None:
        """Answer requests until the client leaves, has loaded, or gets an error."""
        with contextlib.suppress(ClientGoneError):
            call = "LocalRequest"
            try:
                while (request := await self._next()) is not None:
                    call = request.WhichOneof("call") or call
                    if call == "load":
                        return await self._load(request.load)
                    if call == "plan":
                        await self._plan(request.plan)
                    else:
                        await self._replies.send(self._answer(call))
            except ClientGoneError:
                raise
            except Exception as error:  # noqa: BLE001 - the edge that translates
                method = _CALLS.get(call, call)
                name, message, _ = describe_failure(method, error, self._engine.metrics)
                reply = pb.LocalReply(error=pb.LocalError(name=name, message=message))
                await self._replies.send(reply.SerializeToString())

    def _answer(self, call: str) -> bytes:
        if call != "status":
            raise InvalidRequestError("the request asks for nothing that this store knows")
        reply: bytes = pb.LocalReply(status=describe_status(self._engine)).SerializeToString()
        return reply

    async def _plan(self, question: Any) -> None:
        """Answer with a plan, and prepare its load while the client allocates."""
        await self._engine.blocking(self._tell_plan, question)
        await self._replies.flush()

    def _tell_plan(self, question: Any) -> None:
        planned, reply = self._loading.tell(question)
        self._replies.try_send(reply)
        self._engine.beside(self._loading.prepare, planned)

    async def _load(self, request: Any) -> None:
        """Move a load, tell how far it is, and hold what it brought until the client leaves."""
        spent_s = request.spent_s if 0 <= request.spent_s <= SPENT_MAX_S else 0.0
        began_s = time.monotonic() - spent_s
        gone = self._loop.create_task(self._departure())
        try:
            with self._engine.sessions.session(request.client) as holder:
                if request.plan:
                    wanted = self._loading.planned(request)
                    result = None
                else:
                    wanted = await self._engine.blocking(self._loading.wanted, request)
                    await self._replies.send(wanted.planned.event)
                    result = self._loading.try_hold(wanted, holder)
                if result is None:
                    result = await self._move(wanted, holder, request.timeout_s, gone)
            with self._engine.sessions.lease(result):
                if result.holds:
                    self._tell_done(wanted, result)
                    await self._replies.flush()
                    self._replies.send_descriptor(self._engine.pool.read_only_fd())
                # A client leaves once it has everything, unless it keeps what is the store's.
                decodes = wanted.planned.decodes_on_host
                leaves = not result.arenas if decodes else not result.holds
                if not decodes and not leaves:
                    self._loading.learn(wanted, result, time.monotonic() - began_s)
                await asyncio.wait({gone})  # However it ends.
                if leaves:
                    self._loading.learn(wanted, result, time.monotonic() - began_s)
        finally:
            gone.cancel()

    async def _departure(self) -> None:
        """Wait until the client closes the connection; nobody sends anything after a load."""
        with contextlib.suppress(OSError):
            await self._loop.sock_recv(self._connection, 1)

    async def _move(
        self, wanted: WantedLoad, holder: str, timeout_s: float, gone: asyncio.Task[None]
    ) -> LoadResult:
        """Run a load in its thread; it is cancelled when the client is gone."""
        future, control = self._engine.start_load(
            lambda job: self._run(wanted, job),
            holder=holder,
            timeout_s=timeout_s or self._engine.config.load_timeout_s,
        )
        bytes_total = wanted.planned.bytes_total
        try:
            while not future.done():
                await asyncio.wait(
                    {future} if gone.done() else {future, gone},
                    timeout=PROGRESS_INTERVAL_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if future.done() or self._told:
                    continue
                if gone.done():
                    raise ClientGoneError
                bytes_done = wanted.planned.bytes_done(control.bytes_done)
                event = pb.LoadEvent(bytes_done=bytes_done, bytes_total=bytes_total)
                await self._replies.send(pb.LocalReply(event=event).SerializeToString())
            result: LoadResult = future.result()
            await self._replies.flush()
        except BaseException:
            control.cancel()
            self._engine.wake()
            future.add_done_callback(_undo)
            raise
        return result

    def _run(self, wanted: WantedLoad, job: LoadJob) -> LoadResult:
        """Run a load, in its thread; of one that holds nothing the client is told at once."""
        result = self._loading.run(wanted, job)
        if not result.holds:
            self._tell_done(wanted, result)
        return result

    def _tell_done(self, wanted: WantedLoad, result: LoadResult) -> None:
        event = self._loading.done_event(wanted.planned, result)
        self._told = True  # Before the client can be gone for that reason.
        self._replies.try_send(pb.LocalReply(event=event).SerializeToString())

    async def _next(self) -> Any:
        """Return the next request, or None when the client has left."""
        prefix = await self._receive(LENGTH.size)
        if not prefix:
            return None
        (size,) = LENGTH.unpack(prefix)
        if size > REQUEST_BYTES_MAX:
            raise InvalidRequestError(
                f"a request of {size} bytes: at most {REQUEST_BYTES_MAX} are read"
            )
        data = await self._receive(size)
        if len(data) < size:
            return None
        try:
            return pb.LocalRequest.FromString(data)
        except DecodeError as error:
            raise InvalidRequestError(f"not a request of the local socket: {error}") from error

    async def _receive(self, size: int) -> bytes:
        """Return `size` bytes, or none if the peer closes first."""
        received = bytearray()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                while len(received) < size:
                    more = await self._loop.sock_recv(self._connection, size - len(received))
                    if not more:
                        return b""
                    received += more
        except (TimeoutError, OSError) as error:
            raise ClientGoneError from error
        return bytes(received)


def _undo(ended: asyncio.Future[LoadResult]) -> None:
    """Give back what a load got that nobody waited for."""
    if not ended.cancelled() and ended.exception() is None:
        ended.result().release()
