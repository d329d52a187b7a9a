"""The server as an operator meets it: sockets, tokens, health, metrics, start and stop."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sllm_store.client import SllmStoreClient, is_running
from sllm_store.config import StoreConfig
from sllm_store.errors import (
    InvalidRequestError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from sllm_store.server.serve import serve
from tests.store_process import (
    random_tensors,
    read_tensors,
    start_process,
    wait_until,
    write_upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store_process import StoreProcess

    Start = Callable[..., StoreProcess]

MB = 1 << 20


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_upstream(tmp_path / "models" / "m", random_tensors(2, MB))
    return tmp_path / "models"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
        return status


def test_only_the_owner_can_reach_the_sockets(start_store: Start, models: Path) -> None:
    store = start_store(models)
    path = Path(store.address.removeprefix("unix:"))
    for socket_path in (path, path.with_name(f"{path.name}.local")):
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600


def test_it_is_ready_within_a_second_and_imports_no_framework(
    start_store: Start, models: Path
) -> None:
    started_s = time.monotonic()
    store = start_store(models)
    assert time.monotonic() - started_s < 3.0  # Twice what an idle core needs, and some.
    maps = Path(f"/proc/{store.pid}/maps").read_text()
    assert "torch" not in maps
    assert "numpy" not in maps


def test_health_answers_for_each_service(start_store: Start, models: Path) -> None:
    store = start_store(models)
    for service in ("", "storage.Storage", "storage.Store"):
        assert health(store.address, service) == health_pb2.HealthCheckResponse.SERVING


def test_tcp_serves_loads_too(start_store: Start, models: Path) -> None:
    store = start_store(models, host="127.0.0.1", port=free_port())
    assert len(store.addresses) == 2
    with SllmStoreClient(store.addresses[1]) as client:
        assert read_tensors(client.load("m")) == random_tensors(2, MB)


def test_tcp_may_be_spoken_over_ipv6(start_store: Start, models: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    address = start_store(models, host="::1", port=0).addresses[1]
    assert address.startswith("[::1]:")
    assert is_running(address)
    with SllmStoreClient(address) as client:
        assert client.load("m").tier == "disk"


def test_tcp_needs_the_token_and_the_unix_socket_does_not(start_store: Start, models: Path) -> None:
    store = start_store(models, host="127.0.0.1", port=free_port(), token="secret")
    assert store.client().status().pool_bytes == 64 * MB
    for wrong in (None, "guess"):
        with (
            SllmStoreClient(store.addresses[1], token=wrong) as client,
            pytest.raises(UnauthenticatedError, match="SLLM_STORE_TOKEN"),
        ):
            client.status()
    with SllmStoreClient(store.addresses[1], token="secret") as client:
        assert read_tensors(client.load("m")) == random_tensors(2, MB)


def test_a_second_store_on_the_same_socket_is_refused(start_store: Start, models: Path) -> None:
    store = start_store(models)
    path = Path(store.address.removeprefix("unix:"))
    with pytest.raises(InvalidRequestError, match="already running"):
        serve(StoreConfig(storage_path=models, socket_path=path))
    assert store.client().status().pid == store.pid


def test_a_taken_port_is_refused(start_store: Start, models: Path, tmp_path: Path) -> None:
    port = free_port()
    start_store(models, host="127.0.0.1", port=port)
    with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1"):
        start_process(models, tmp_path, host="127.0.0.1", port=port, socket_path=tmp_path / "x")


def test_a_missing_storage_path_is_refused(tmp_path: Path) -> None:
    config = StoreConfig(storage_path=tmp_path / "none", socket_path=tmp_path / "s")
    with pytest.raises(InvalidRequestError, match="not a directory"):
        serve(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(start_store: Start, models: Path, number: int) -> None:
    store = start_store(models)
    client = store.client()
    loaded = client.load("m")
    assert store.stop(number) == 0
    path = Path(store.address.removeprefix("unix:"))
    assert not list(path.parent.glob(f"{path.name}*[!k]"))  # Only the lock may stay.
    assert read_tensors(loaded) == random_tensors(2, MB)
    assert not is_running(store.address)
    assert "stopped" in store.log.read_text()


def test_nobody_at_the_address_is_said_plainly(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    assert not is_running(address)
    with (
        SllmStoreClient(address) as client,
        pytest.raises(StoreUnavailableError, match="start one with `sllm-store start`"),
    ):
        client.status()


def test_metrics_are_served_for_prometheus(start_store: Start, models: Path) -> None:
    port = free_port()
    store = start_store(models, metrics_port=port)
    client = store.client()
    client.load("m")
    client.load("m")
    with pytest.raises(InvalidRequestError):
        client.load("../m")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    assert 'sllm_store_loads_total{tier="disk"} 1.0' in text
    assert 'sllm_store_loads_total{tier="host"} 1.0' in text
    assert 'error="InvalidRequestError",method="Load"} 1.0' in text
    assert f"sllm_store_pool_bytes {float(64 * MB)}" in text.replace("6.7108864e+07", "67108864.0")


def test_reflection_is_off_unless_asked_for(start_store: Start, models: Path) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    def services(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
            return [service.name for service in reply.list_services_response.service]

    with pytest.raises(grpc.RpcError):
        services(start_store(models).address)
    assert "storage.Storage" in services(start_store(models, reflection=True).address)


def test_shutdown_waits_for_a_running_load(
    models: Path, start_store: Start, gpu_environment: dict[str, str]
) -> None:
    write_upstream(models / "big", random_tensors(10, 3 * MB))
    slow = gpu_environment | {"FAKE_CUDA_COPY_DELAY_US": "20000"}
    store = start_store(models, slow)
    code = (
        "import sys; from sllm_store import native; from sllm_store.client import SllmStoreClient\n"
        "c = SllmStoreClient(sys.argv[1])\n"
        "c.load('big', {'': native.device_uuid(0)}, on_progress=lambda a, b: print(a, b))\n"
        "print('whole')"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, store.address],
        env=os.environ | gpu_environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline()
        store.process.send_signal(signal.SIGTERM)
        out, _ = client.communicate(timeout=30)
    assert out.endswith("whole\n")
    wait_until(lambda: store.process.poll() == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_socket_directory_of_another_user_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    config = StoreConfig(storage_path=models, socket_path=tmp_path / "theirs" / "s")
    with pytest.raises(InvalidRequestError, match="belongs to user 12345"):
        serve(config)
