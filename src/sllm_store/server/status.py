"""What a server says of itself."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sllm_store.config import local_socket_path
from sllm_store.proto import storage_pb2 as pb

if TYPE_CHECKING:
    from sllm_store.server.engine import Engine

_VERSION = version("serverless-llm")  # Looked up once: it takes a millisecond.


def describe_status(engine: Engine) -> Any:
    """Return what this server is and how busy."""
    return pb.GetStatusResponse(
        version=_VERSION,
        pid=os.getpid(),
        uptime_s=time.monotonic() - engine.started_s,
        pool_bytes=engine.pool.size,
        pool_used_bytes=engine.host.used_bytes,
        chunk_size=engine.config.chunk_bytes,
        pool_pinned=engine.pool.pinned,
        sessions=engine.sessions.count,
        leases=engine.sessions.lease_count,
        loads_running=len(engine.running),
        storage_path=str(engine.catalog.root),
        devices=engine.gpus,
        gpu_pool_bytes=engine.config.gpu_pool_bytes,
        resident_bytes={gpu: engine.devices.used_bytes(gpu) for gpu in engine.gpus},
        local_socket=str(local_socket_path(engine.config.socket_path)),
    )
