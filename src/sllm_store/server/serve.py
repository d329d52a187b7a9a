"""The composition root of the server: sockets, pool, services, signals, a shutdown that drains."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from prometheus_client import start_http_server

from sllm_store import native
from sllm_store.config import local_socket_path, rpc_target, tcp_address
from sllm_store.errors import DeviceError, InvalidRequestError
from sllm_store.host_memory import machine_bytes
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.server.edge import OPTIONS, TokenInterceptor
from sllm_store.server.engine import Engine, Executors
from sllm_store.server.loading import Loading
from sllm_store.server.local_socket import LocalServer
from sllm_store.server.service import StoreService
from sllm_store.server.socket_file import socket_owned
from sllm_store.server.upstream import UpstreamService
from sllm_store.tiers.device import open_gpus, visible_gpus
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.config import StoreConfig

SERVICES = ("storage.Storage", "storage.Store")
LOAD_THREADS = 64
CALL_THREADS = 8
DRAIN_S = 10.0

log = logging.getLogger(__name__)


def serve(config: StoreConfig, on_ready: Callable[[list[str]], None] | None = None) -> None:
    """Run a store until SIGTERM or SIGINT; on_ready gets the addresses once they answer.

    Raises InvalidRequestError when another store has the socket or the port, or when the storage
    path is not a directory.
    """
    if not config.storage_path.is_dir():
        raise InvalidRequestError(
            f"storage path {config.storage_path} is not a directory: create it, or name another "
            "with --storage-path"
        )
    with socket_owned(config.socket_path, serves=config.storage_path):
        _raise_limits()
        pool = _make_pool(config)
        gc.freeze()  # What is imported stays: while loads wait, no collection looks at it.
        asyncio.run(_serve(config, pool, on_ready))


async def _serve(
    config: StoreConfig, pool: native.SharedPool, on_ready: Callable[[list[str]], None] | None
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with (
        ThreadPoolExecutor(CALL_THREADS, "store-call") as calls,
        ThreadPoolExecutor(LOAD_THREADS, "store-load") as loads,
        ThreadPoolExecutor(1, "store-free") as frees,
    ):
        engine = Engine(config, pool, Executors(calls=calls, loads=loads, frees=frees))
        loading = Loading(engine)
        local = LocalServer(local_socket_path(config.socket_path), engine, loading)
        local.start(loop)
        server, health = _make_server(config, engine, loading)
        metrics = None
        try:
            metrics = _start_metrics(config, engine)
            addresses = _listen(server, config)
            await server.start()
            config.socket_path.chmod(0o600)
            log.info("store ready", extra={"addresses": addresses, "pool_bytes": pool.size})
            if on_ready is not None:
                on_ready(addresses)
            await stopping.wait()
            log.info("store stopping", extra={"loads_running": len(engine.running)})
            await health.enter_graceful_shutdown()
            await engine.drain(DRAIN_S)
            await engine.blocking(engine.keep)
        finally:
            await server.stop(grace=1.0)
            await local.close()
            if metrics is not None:
                metrics[0].shutdown()
                metrics[0].server_close()
                metrics[1].join()
    log.info("store stopped")


def _make_server(config: StoreConfig, engine: Engine, loading: Loading) -> tuple[Any, Any]:
    interceptors = [TokenInterceptor(config.token)] if config.token else []
    server = grpc.aio.server(options=OPTIONS, interceptors=interceptors)
    rpc.add_StorageServicer_to_server(UpstreamService(engine), server)
    rpc.add_StoreServicer_to_server(StoreService(engine, loading), server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for service in ("", *SERVICES):
        asyncio.get_running_loop().create_task(
            health.set(service, health_pb2.HealthCheckResponse.SERVING)
        )
    if config.reflection:
        _add_reflection(server)
    return server, health


def _add_reflection(server: Any) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError as error:
        raise InvalidRequestError(
            "--reflection needs grpcio-reflection: pip install 'serverless-llm[reflection]'"
        ) from error
    names = [pb.DESCRIPTOR.services_by_name[name.split(".")[1]].full_name for name in SERVICES]
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


def _listen(server: Any, config: StoreConfig) -> list[str]:
    """Bind every address; raise InvalidRequestError for one that cannot be bound."""
    bound = [f"unix:{config.socket_path}"]
    _bind(server, bound[0])
    if config.host is not None:
        port = _bind(server, tcp_address(config.host, config.port))
        bound.append(tcp_address(config.host, port))
    return bound


def _bind(server: Any, address: str) -> int:
    mask = os.umask(0o177)
    try:
        port: int = server.add_insecure_port(rpc_target(address))
    except RuntimeError as error:
        raise InvalidRequestError(
            f"cannot listen on {address}: is another store running there? ({error})"
        ) from error
    finally:
        os.umask(mask)
    return port


def _raise_limits() -> None:
    """Allow as many open files as the system lets us have: a client that maps a model has one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _make_pool(config: StoreConfig) -> native.SharedPool:
    """Allocate the pool; with GPUs, open them, fault it in and pin it: no load pays for that."""
    total_bytes = machine_bytes()
    if config.pool_bytes > total_bytes:
        raise InvalidRequestError(
            f"pool size {format_size(config.pool_bytes)}: this machine has "
            f"{format_size(total_bytes)} of memory; use a smaller --mem-pool-size"
        )
    pool = native.SharedPool(config.chunks_total * config.chunk_bytes)
    if visible_gpus():
        with ThreadPoolExecutor(1, "store-gpu") as beside:
            opened = beside.submit(open_gpus)
            pool.populate(config.threads)
            opened.result()
        try:
            pool.pin()
        except native.CudaError as error:
            raise DeviceError(
                f"cannot pin the pool of {format_size(pool.size)}: {error.args[0]}; raise the "
                "locked-memory limit (ulimit -l) or use a smaller --mem-pool-size"
            ) from error
    return pool


def _start_metrics(config: StoreConfig, engine: Engine) -> Any:
    if config.metrics_port is None:
        return None
    host = config.host or "127.0.0.1"
    try:
        return start_http_server(config.metrics_port, addr=host, registry=engine.metrics.registry)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot serve metrics on {host}:{config.metrics_port}: {error.strerror}; name another "
            "--metrics-port"
        ) from error
