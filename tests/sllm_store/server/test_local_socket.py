"""The local socket against those who do not keep to its protocol."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry, Gauge

from sllm_store import native
from sllm_store.errors import InvalidRequestError, StoreError
from sllm_store.local_connection import LocalConnection
from sllm_store.proto import storage_pb2 as pb
from sllm_store.server.loads import LoadResult
from sllm_store.server.local_socket import LocalServer
from sllm_store.server.sessions import Sessions
from tests.store_process import open_descriptors, random_tensors, wait_until, write_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sllm_store.server.engine import Engine
    from sllm_store.server.loading import Loading
    from tests.store_process import StoreProcess


@pytest.fixture
def store(start_store: Callable[..., StoreProcess], tmp_path: Path) -> StoreProcess:
    write_upstream(tmp_path / "models" / "m", random_tensors(3, 1 << 20))
    return start_store(tmp_path / "models")


@pytest.fixture
def raw(store: StoreProcess) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(store.client().status().local_socket)
        yield connection


def reply(connection: socket.socket) -> pb.LocalReply:
    (size,) = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))
    return pb.LocalReply.FromString(connection.recv(size, socket.MSG_WAITALL))


def frame(request: pb.LocalRequest) -> bytes:
    data = request.SerializeToString()
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (struct.pack("<I", 5) + b"\xff" * 5, "not a request of the local socket"),
        (struct.pack("<I", 1 << 31), "at most 67108864 are read"),
        (struct.pack("<I", 0), "asks for nothing that this store knows"),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(
    raw: socket.socket, sent: bytes, message: str
) -> None:
    raw.sendall(sent)
    error = reply(raw).error
    assert error.name == "InvalidRequestError"
    assert message in error.message
    assert raw.recv(1) == b""


def test_a_request_may_come_byte_by_byte_and_another_follow(raw: socket.socket) -> None:
    for _ in range(2):
        for byte in frame(pb.LocalRequest(status=pb.GetStatusRequest())):
            raw.sendall(bytes([byte]))
        assert reply(raw).status.pid


def test_half_a_request_is_no_request(store: StoreProcess, raw: socket.socket) -> None:
    raw.sendall(frame(pb.LocalRequest(plan=pb.PlanLoadRequest(model="m")))[:-1])
    raw.shutdown(socket.SHUT_WR)
    assert raw.recv(1) == b""
    assert store.client().load("m").tier == "disk"


def test_clients_that_come_and_go_leave_nothing(store: StoreProcess) -> None:
    path = store.client().status().local_socket
    before = open_descriptors(store.pid)
    request = pb.LoadRequest(question=pb.PlanLoadRequest(model="m"))
    for read in (0, 1, 2):
        connection = LocalConnection(path, address=store.address)
        events = connection.load(request)
        for _ in range(read):
            next(events)
        connection.close()
    status = store.client().status
    wait_until(lambda: status().sessions == 0 and status().leases == 0)
    wait_until(lambda: open_descriptors(store.pid) <= before + 1)


def test_an_error_is_raised_as_its_own_class(store: StoreProcess) -> None:
    path = store.client().status().local_socket
    for model, kind in {"x": StoreError, "": InvalidRequestError}.items():
        with LocalConnection(path, address=store.address) as connection:
            question = pb.LocalRequest(plan=pb.PlanLoadRequest(model=model))
            with pytest.raises(kind):
                connection.call(question)


def test_a_store_out_of_descriptors_rests_and_says_so_once_a_second(
    store: StoreProcess,
) -> None:
    path = store.client().status().local_socket
    resource.prlimit(store.pid, resource.RLIMIT_NOFILE, (64, 64))
    before = store.log.stat().st_size
    waiting = []
    for _ in range(64):
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting[-1].connect(path)
    wait_until(lambda: "no more clients for now: Too many open files" in store.log.read_text())
    assert store.log.stat().st_size - before < 10_000
    assert "Traceback" not in store.log.read_text()
    for connection in waiting:
        connection.close()
    assert store.client().load("m").tier == "disk"


def test_a_store_takes_all_the_descriptors_that_the_system_lets_it_have(
    store: StoreProcess,
) -> None:
    soft, hard = resource.prlimit(store.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


class _Load:
    """A load that tells its client of its end before the event loop hears of it."""

    def __init__(self) -> None:
        gauge = Gauge("sessions", "None.", registry=CollectorRegistry())
        self.sessions = Sessions(gauge)
        self.config = SimpleNamespace(load_timeout_s=10.0)
        self.ended: asyncio.Future[LoadResult] | None = None
        self.result: LoadResult | None = None
        self.learned = asyncio.Event()

    def start_load(
        self, function: Callable[[Any], LoadResult], **_: object
    ) -> tuple[asyncio.Future[LoadResult], native.Control]:
        self.ended = asyncio.get_running_loop().create_future()
        self.result = function(None)
        return self.ended, native.Control()

    def planned(self, request: Any) -> Any:
        planned = SimpleNamespace(bytes_total=1, decodes_on_host=False, plan_id=request.plan)
        return SimpleNamespace(planned=planned)

    def run(self, *_: object) -> LoadResult:
        return LoadResult(tier="host", bytes_read=0, bytes_copied=1, total_s=1.0)

    def done_event(self, *_: object) -> pb.LoadEvent:
        return pb.LoadEvent(done=True)

    def learn(self, *_: object) -> None:
        self.learned.set()


def test_who_leaves_because_its_load_has_ended_has_not_cancelled_it(tmp_path: Path) -> None:
    path = tmp_path / "s.sock.local"

    def load() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(frame(pb.LocalRequest(load=pb.LoadRequest(plan="p"))))
            assert reply(connection).event.done

    async def serve() -> None:
        fake = _Load()
        server = LocalServer(path, cast("Engine", fake), cast("Loading", fake))
        server.start(asyncio.get_running_loop())
        async with asyncio.timeout(30):
            await asyncio.to_thread(load)
            for task in asyncio.all_tasks():
                if "_departure" in repr(task):
                    await task
            for _ in range(3):  # Turns in which the client's departure is dealt with.
                await asyncio.sleep(0)
            assert fake.ended is not None
            assert fake.result is not None
            fake.ended.set_result(fake.result)
            await fake.learned.wait()
        await server.close()

    asyncio.run(serve())
