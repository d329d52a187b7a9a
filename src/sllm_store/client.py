"""SllmStoreClient: what a process on the node uses to talk to its store."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc

from sllm_store import native
from sllm_store.answers import LoadEstimate, ModelInfo, ResidentInfo, StoreStatus
from sllm_store.checkpoint.columns import from_columns
from sllm_store.checkpoint.loaded import Loaded, Placed
from sllm_store.checkpoint.plan import CPU
from sllm_store.checkpoint.reader import guess_arena_bytes
from sllm_store.config import (
    TOKEN_VARIABLE,
    default_address as configured_address,
    local_socket_path,
    require_token,
    rpc_target,
)
from sllm_store.errors import InvalidRequestError, StoreError
from sllm_store.interpreter import no_collection, short_turns
from sllm_store.local_connection import LocalConnection, require_trusted
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.rpc_errors import translated
from sllm_store.tiers.decoding import map_host, with_decoding
from sllm_store.tiers.device import KnownArenas

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm_store.checkpoint.loaded import ArenaMemory
    from sllm_store.tiers.watching import OnProgress

    OnPlaced = Callable[[Placed], None]

CALL_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 2.0
# How long a connection to the local socket waits for its next call: one load_dict makes several.
IDLE_S = 2.0
# Memory for less is there at once.
GUESSED_BYTES_MIN = 1 << 30
_UNIX = "unix:"
_OPTIONS = [
    ("grpc.max_receive_message_length", 512 << 20),
    ("grpc.max_send_message_length", 512 << 20),
]

Chunk = tuple[int, int, int, int]
_ARENAS = KnownArenas()


def default_address() -> str:
    """Return the address that clients use when given none."""
    return configured_address(os.environ, uid=os.getuid())


def is_running(address: str | None = None) -> bool:
    """Return whether something accepts connections at the address; takes a few microseconds."""
    target = address or default_address()
    try:
        if target.startswith(_UNIX):
            require_trusted(Path(target.removeprefix(_UNIX)))
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(target.removeprefix(_UNIX))
        else:
            host, _, port = target.rpartition(":")
            place = (host.strip("[]"), int(port))
            socket.create_connection(place, timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


class SllmStoreClient:
    """A connection to a store. Thread-safe; close it, or use it as a context manager.

    Every method raises the store's errors: StoreUnavailableError when nothing answers,
    DeadlineError, and those that the server names. Memory that a load returned stays valid after
    close, until its last tensor is gone.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None) -> None:
        """Connect lazily to 'unix:/path' or 'host:port'; the default is the user's own store.

        token defaults to the environment's SLLM_STORE_TOKEN. Raises InvalidRequestError for
        'unix:' without a path, StoreUnavailableError where another user could be the store.
        """
        self.address = address or default_address()
        secret = token or os.environ.get(TOKEN_VARIABLE)
        require_token(secret or "")
        self._metadata = [("authorization", f"Bearer {secret}")] if secret else []
        self._lock = threading.Lock()
        self._grpc: tuple[Any, tuple[Any, Any]] | None = None
        self._idle: tuple[LocalConnection, float, int] | None = None
        self._local_path = ""
        self._root: Path | None = None  # What the store serves, once that is known.
        if self.address.startswith(_UNIX):
            socket_path = Path(self.address.removeprefix(_UNIX))
            if not socket_path.name:
                raise InvalidRequestError(f"{self.address!r} names no socket: write unix:/path")
            require_trusted(socket_path)
            self._local_path = str(local_socket_path(socket_path))

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent."""
        with self._lock:
            opened, self._grpc = self._grpc, None
            idle, self._idle = self._idle, None
        if opened is not None:
            opened[0].close()
        if idle is not None:
            idle[0].close()

    def load_into_cpu(self, model_path: str) -> Any:
        """Start bringing a model into the host pool."""
        request = pb.LoadModelRequest(model_path=model_path, target_device_type=pb.DEVICE_TYPE_CPU)
        return self._call(self._storage.LoadModelAsync, request)

    def load_into_gpu(
        self,
        model_path: str,
        replica_uuid: str,
        tensor_copy_chunks: Mapping[str, Sequence[Chunk]],
        cuda_memory_handles: Mapping[str, Sequence[bytes]],
    ) -> Any:
        """Start copying chunks (src_offset, size, dst_offset, handle_idx), keyed by GPU UUID."""
        chunks = {
            uuid: pb.MemCopyChunkList(
                chunks=[
                    pb.MemCopyChunk(src_offset=src, size=size, dst_offset=dst, handle_idx=index)
                    for src, size, dst, index in entries
                ]
            )
            for uuid, entries in tensor_copy_chunks.items()
        }
        handles = {
            uuid: pb.MemCopyHandleList(
                handles=[pb.MemCopyHandle(cuda_ipc_handle=handle) for handle in entries]
            )
            for uuid, entries in cuda_memory_handles.items()
        }
        request = pb.LoadModelRequest(
            model_path=model_path,
            replica_uuid=replica_uuid,
            chunks=chunks,
            handles=handles,
            target_device_type=pb.DEVICE_TYPE_GPU,
        )
        return self._call(self._storage.LoadModelAsync, request)

    def confirm_model_loaded(
        self, model_path: str, replica_uuid: str = "", *, timeout_s: float = 600.0
    ) -> None:
        """Wait until a load has ended, and raise its error if it failed.

        With a replica_uuid it waits for that load into a GPU, else for the one into the pool.
        """
        device = pb.DEVICE_TYPE_GPU if replica_uuid else pb.DEVICE_TYPE_CPU
        request = pb.ConfirmModelRequest(
            model_path=model_path, replica_uuid=replica_uuid, target_device_type=device
        )
        self._call(self._storage.ConfirmModel, request, timeout_s=timeout_s)

    def unload_from_cpu(self, model_path: str) -> Any:
        """Free a model's part of the host pool; raise InUseError saying who uses it."""
        request = pb.UnloadModelRequest(
            model_path=model_path, target_device_type=pb.DEVICE_TYPE_CPU
        )
        return self._call(self._storage.UnloadModel, request)

    def unload_from_gpu(self, model_path: str, replica_uuid: str = "") -> Any:
        """Free a model's memory on GPUs; raise InUseError saying who uses it.

        With a replica_uuid only forget that replica, and cancel its load if it runs: its memory
        is the client's.
        """
        request = pb.UnloadModelRequest(
            model_path=model_path,
            replica_uuid=replica_uuid,
            target_device_type=pb.DEVICE_TYPE_GPU,
        )
        return self._call(self._storage.UnloadModel, request)

    def register_model(self, model_path: str) -> int:
        """Let the store open a checkpoint; return the size of its data files in bytes."""
        request = pb.RegisterModelRequest(model_path=model_path)
        size: int = self._call(self._storage.RegisterModel, request).model_size
        return size

    def clear_mem(self) -> None:
        """Free the host pool and the store's GPU memory; raise InUseError saying who uses what."""
        self._call(self._storage.ClearMem, pb.ClearMemRequest())

    def get_server_config(self) -> dict[str, int]:
        """Return {'chunk_size': …, 'mem_pool_size': …}, in bytes."""
        reply = self._call(self._storage.GetServerConfig, pb.GetServerConfigRequest())
        return {"chunk_size": reply.chunk_size, "mem_pool_size": reply.mem_pool_size}

    def list_models(self) -> list[ModelInfo]:
        """Return the checkpoints under the storage path, by name."""
        reply = self._call(self._store.ListModels, pb.ListModelsRequest())
        return [
            ModelInfo(
                name=model.name,
                format=model.format,
                size_bytes=model.size_bytes,
                stored_bytes=model.stored_bytes,
                host_bytes=model.host_bytes,
                pinned=model.pinned,
                leases=model.leases,
                tensors=model.tensors,
                error=model.error,
                resident=tuple(
                    ResidentInfo(
                        device=arena.device,
                        size_bytes=arena.size_bytes,
                        pinned=arena.pinned,
                        leases=arena.leases,
                    )
                    for arena in model.resident
                ),
            )
            for model in reply.models
        ]

    def status(self) -> StoreStatus:
        """Return what the store is and how busy."""
        reply = self._ask_status()
        values = {entry.name: getattr(reply, entry.name) for entry in fields(StoreStatus)}
        resident_bytes = dict(reply.resident_bytes)
        values |= {"devices": tuple(reply.devices), "resident_bytes": resident_bytes}
        return StoreStatus(**values)

    def storage_path(self, *, timeout_s: float | None = None) -> Path:
        """Return the directory whose checkpoints the store serves.

        timeout_s: whether it answers is looked at, for so long; raises StoreUnavailableError or
        DeadlineError if it does not. Else what this process knows will do.
        """
        if self.address.startswith(_UNIX):
            path = self._ask(lambda server: server.storage_path(timeout_s=timeout_s))
        else:
            limit_s = timeout_s or CALL_TIMEOUT_S
            request = pb.GetStatusRequest()
            path = self._call(self._store.GetStatus, request, timeout_s=limit_s).storage_path
        self._root = Path(path)
        return self._root

    def _ask_status(self) -> Any:
        if self.address.startswith(_UNIX):
            return self._ask(LocalConnection.status)
        return self._call(self._store.GetStatus, pb.GetStatusRequest())

    def _ask(self, ask: Callable[[LocalConnection], Any]) -> Any:
        connection = self._connect()
        with ExitStack() as failed:
            failed.callback(connection.close)
            answer = ask(connection)
            failed.pop_all()
        with self._lock:
            before, self._idle = self._idle, (connection, time.monotonic(), os.getpid())
        if before is not None:
            before[0].close()
        return answer

    def set_pinned(
        self,
        model: str,
        *,
        pinned: bool,
        device_map: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """Load a model and keep it where device_map puts it, or stop keeping it there.

        device_map is as for load; without one it is the host pool. On GPUs the store keeps what
        shared loads with the same map get.
        """
        request = pb.SetPinnedRequest(model=model, pinned=pinned, device_map=device_map or {})
        self._call(self._store.SetPinned, request, timeout_s=timeout_s)

    def estimate_load(
        self, model: str, device_map: Mapping[str, str] | None = None, *, shared: bool = False
    ) -> LoadEstimate:
        """Return how long load would take with these arguments if it were called now.

        The store learns what its disk and links do from the loads that it serves, and remembers it.
        """
        question = pb.PlanLoadRequest(model=model, device_map=dict(device_map or {}))
        request = pb.EstimateLoadRequest(question=question, shared=shared)
        reply = self._call(self._store.EstimateLoad, request)
        return LoadEstimate(**{f.name: getattr(reply, f.name) for f in reply.DESCRIPTOR.fields})

    def load(
        self,
        model: str,
        device_map: Mapping[str, str] | None = None,
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_placed: Callable[[Placed], None] | None = None,
    ) -> Loaded:
        """Load a checkpoint by name: to GPUs by copy, to the host by mapping the store's memory.

        device_map maps name prefixes to 'cpu' or a GPU's UUID; empty means everything on the
        host. Host memory is shared with every other process that loads the model and private when
        written to. With `shared` so is GPU memory, but it is never private: CUDA IPC has no mapping
        for reading alone, so what one process writes all others see. on_progress gets (bytes done,
        bytes in all). on_placed is called once, as soon as the memory is there: while the bytes
        still move, unless some of it is the host's. It is for what need not wait for them.
        """
        question = pb.PlanLoadRequest(model=model, device_map=dict(device_map or {}))
        request = pb.LoadRequest(client=_own_name(), shared=shared, timeout_s=timeout_s or 0.0)
        with short_turns():
            if shared or set(question.device_map.values()) <= {CPU}:
                request.question.CopyFrom(question)
                placed, tier = self._load_mapped(request, on_progress, on_placed)
            else:
                placed, tier = self._load_copied(question, request, on_progress, on_placed)
        return placed.loaded(tier=tier, store=self.address)

    def _load_mapped(
        self, request: Any, on_progress: OnProgress | None, on_placed: OnPlaced | None
    ) -> tuple[Placed, str]:
        """Plan and load in one call, and map what the store has."""
        with self._connect() as connection:
            events = connection.load(request)
            planned = next(events).plan
            done = _follow(events, with_decoding(on_progress, planned.arenas))
            own: list[ArenaMemory | None] = [None] * len(planned.arenas)
            placed = _placed(
                planned, _map_arenas(connection, planned, done, own, on_progress=on_progress)
            )
        if on_placed is not None:
            on_placed(placed)
        return placed, done.tier

    def _load_copied(
        self,
        question: Any,
        request: Any,
        on_progress: OnProgress | None,
        on_placed: OnPlaced | None,
    ) -> tuple[Placed, str]:
        """Plan, allocate, and let the store copy; what is on the host is mapped."""
        started_s = time.monotonic()
        with self._connect() as connection:
            with no_collection():  # Until the bytes move.
                connection.ask(pb.LocalRequest(plan=question))
                planned, buffers = _ARENAS.allocate(
                    (self.address, question.model, frozenset(question.device_map.items())),
                    lambda: connection.answer().plan,
                    lambda plan: [(arena.device, arena.size_bytes) for arena in plan.arenas],
                    guess=lambda: self._guess_arenas(question),
                )
                request.plan = planned.plan
                request.targets.extend(
                    pb.DeviceTarget(
                        device=native.device_uuid(buffer.device), ipc_handle=buffer.ipc_handle()
                    )
                    for buffer in buffers
                    if buffer is not None
                )
                request.spent_s = time.monotonic() - started_s
                events = connection.load(request)
                placed = _placed(planned, buffers)
                own_all = all(arena.device != CPU for arena in planned.arenas)
                if on_placed is not None and own_all:
                    on_placed(placed)
            done = _follow(events, with_decoding(on_progress, planned.arenas))
            if not own_all:
                arenas = _map_arenas(
                    connection, planned, done, list(buffers), on_progress=on_progress
                )
                placed = replace(placed, arenas=tuple(arenas))
        if on_placed is not None and not own_all:
            on_placed(placed)
        return placed, done.tier

    def _guess_arenas(self, question: Any) -> list[tuple[str, int]]:
        """Return what a load of all of a model to one GPU will take, by its files if we see them.

        Nothing for any other load, and where it is little.
        """
        gpu = question.device_map.get("", CPU)
        if self._root is None or len(question.device_map) != 1 or gpu == CPU:
            return []
        size_bytes = guess_arena_bytes(self._root / question.model)
        return [(gpu, size_bytes)] if size_bytes >= GUESSED_BYTES_MIN else []

    def _connect(self) -> LocalConnection:
        """Return a connection to the local socket, perhaps one that has just been of use."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            connection, since_s, process = idle
            if process == os.getpid() and time.monotonic() - since_s < IDLE_S:
                return connection
            connection.close()
        if not self._local_path:
            self._local_path = self._ask_status().local_socket
        return LocalConnection(self._local_path, address=self.address)

    @property
    def _storage(self) -> Any:
        return self._stubs()[0]

    @property
    def _store(self) -> Any:
        return self._stubs()[1]

    def _stubs(self) -> tuple[Any, Any]:
        """Return both services over gRPC; a channel takes milliseconds, and loads need none."""
        with self._lock:
            if self._grpc is None:
                channel = grpc.insecure_channel(rpc_target(self.address), options=_OPTIONS)
                self._grpc = channel, (rpc.StorageStub(channel), rpc.StoreStub(channel))
            return self._grpc[1]

    def _call(self, method: Any, request: Any, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        with translated(self.address):
            return method(request, timeout=timeout_s, metadata=self._metadata)


def _own_name() -> str:
    """Return what the store calls this process in its messages."""
    return f"{Path(sys.argv[0] or 'python').name}[{os.getpid()}]"


def _follow(events: Any, on_progress: Callable[[int, int], None] | None) -> Any:
    """Return a load's last event."""
    for event in events:
        if on_progress is not None:
            on_progress(event.bytes_done, event.bytes_total)
        if event.done:
            return event
    raise StoreError("the store ended a load without saying how: see its log")


def _placed(planned: Any, arenas: Sequence[ArenaMemory | None]) -> Placed:
    with no_collection():
        tensors = from_columns(planned.tensors)
    return Placed(
        arenas=tuple(arenas),
        devices=tuple(arena.device for arena in planned.arenas),
        tensors=tensors,
        aliases=dict(planned.aliases),
        directory=Path(planned.path),
        format=planned.format,
    )


def _map_arenas(
    connection: LocalConnection,
    planned: Any,
    done: Any,
    own: list[ArenaMemory | None],
    *,
    on_progress: OnProgress | None,
) -> list[ArenaMemory | None]:
    """Map the arenas of a finished load that are not the client's own; they keep the connection."""
    if not done.held:
        return own
    shared = iter(done.arenas)
    with connection.held_memory() as held:
        for index, arena in enumerate(planned.arenas):
            if own[index] is not None or not arena.size_bytes:
                continue
            if arena.device == CPU:
                own[index] = map_host(held, done, arena, on_progress)
            else:
                own[index] = held.map_device(arena.device, next(shared).ipc_handle)
    return own
