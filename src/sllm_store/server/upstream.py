"""ServerlessLLM's own service, wire for wire: decode, call, encode.

Its client plans the copies itself and names bytes by their offset in the concatenated partitions.
Everything it sends is checked against the checkpoint and against the allocation behind each
handle before a byte moves.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sllm_store import native
from sllm_store.checkpoint.layout import Piece
from sllm_store.errors import InvalidRequestError
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.server.edge import before_deadline, remaining_s, unary
from sllm_store.tiers.device import device_error, device_ordinal
from sllm_store.tiers.transfer import Target

if TYPE_CHECKING:
    import asyncio

    from sllm_store.server.catalog import Entry
    from sllm_store.server.engine import Engine
    from sllm_store.server.loads import LoadJob, LoadResult
    from sllm_store.tiers.host import Patience

REPLICAS_MAX = 16_384
_HANDLE_BYTES = 64

ReplicaKey = tuple[str, str]


class UpstreamService(rpc.StorageServicer):
    """The six methods of storage.Storage."""

    def __init__(self, engine: Engine) -> None:
        """Replicas are remembered until confirmed loads push them out."""
        self._engine = engine
        self.metrics = engine.metrics
        self._replicas: OrderedDict[ReplicaKey, asyncio.Future[Any]] = OrderedDict()

    @unary
    async def LoadModelAsync(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Start a load; ConfirmModel waits for it."""
        entry = await self._engine.blocking(self._engine.catalog.get, _path(request))
        if request.target_device_type == pb.DEVICE_TYPE_CPU:
            self._start(
                (entry.name, ""),
                lambda job: self._engine.loader.load_host(entry, job, keep_held=False),
            )
        elif request.target_device_type == pb.DEVICE_TYPE_GPU:
            if not request.replica_uuid:
                raise InvalidRequestError("replica_uuid is empty: send one per replica")
            key = (entry.name, request.replica_uuid)
            running = self._replicas.get(key)
            if running is not None and not running.done():
                raise InvalidRequestError(
                    f"replica {request.replica_uuid} of {entry.name} is loading already"
                )
            stack, targets = await self._engine.blocking(open_targets, entry, request)
            self._start(key, lambda job: self._load_device(entry, stack, targets, job))
        else:
            raise InvalidRequestError("target_device_type must be CPU or GPU")
        return pb.LoadModelResponse(model_path=request.model_path)

    @unary
    async def ConfirmModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Wait until a load has ended; its error is this call's error."""
        entry = await self._engine.blocking(self._engine.catalog.get, _path(request))
        on_gpu = request.target_device_type == pb.DEVICE_TYPE_GPU
        future = self._replicas.get((entry.name, request.replica_uuid if on_gpu else ""))
        if future is None:
            raise InvalidRequestError(
                f"no load of {entry.name} is known for replica {request.replica_uuid!r}: call "
                "LoadModelAsync first"
            )
        timeout_s = remaining_s(context, self._engine.config.load_timeout_s)
        await before_deadline(future, timeout_s, f"the load of {entry.name}")
        return pb.ConfirmModelResponse(model_path=request.model_path)

    @unary
    async def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Free a model's host chunks or resident arenas, or forget a replica on a GPU."""
        entry = await self._engine.blocking(self._engine.catalog.get, _path(request))
        patience = self._patience(context)
        if request.target_device_type == pb.DEVICE_TYPE_GPU and not request.replica_uuid:
            await self._engine.blocking(self._engine.devices.unload, entry.name, patience)
        elif request.target_device_type == pb.DEVICE_TYPE_GPU:
            future = self._replicas.pop((entry.name, request.replica_uuid), None)
            control = None if future is None else self._engine.running.get(future)
            if control is not None:
                control.cancel()
                self._engine.wake()
        elif request.target_device_type == pb.DEVICE_TYPE_CPU:
            await self._engine.blocking(self._engine.host.unload, entry.name, patience)
        else:
            raise InvalidRequestError("target_device_type must be CPU or GPU")
        return pb.UnloadModelResponse(model_path=request.model_path)

    @unary
    async def ClearMem(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Free every model's host chunks and resident arenas; an error names those in use."""
        patience = self._patience(context)
        for tier in (self._engine.host, self._engine.devices):
            for model in tier.models():
                await self._engine.blocking(tier.unload, model, patience)
        return pb.ClearMemResponse()

    @unary
    async def RegisterModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Open a checkpoint and return the size of its data files."""
        entry = await self._engine.blocking(self._engine.catalog.register, _path(request))
        return pb.RegisterModelResponse(model_path=request.model_path, model_size=entry.file_bytes)

    @unary
    async def GetServerConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the sizes of the pool and of its chunks."""
        return pb.GetServerConfigResponse(
            mem_pool_size=self._engine.pool.size, chunk_size=self._engine.config.chunk_bytes
        )

    def _patience(self, context: Any) -> Patience:
        """Return how long an unload waits for a model's users."""
        timeout_s = self._engine.config.unload_timeout_s
        return self._engine.patience(remaining_s(context, timeout_s))

    def _start(self, key: ReplicaKey, load: Any) -> None:
        future, _ = self._engine.start_load(
            load,
            holder=f"replica {key[1]}" if key[1] else "a preload",
            timeout_s=self._engine.config.load_timeout_s,
        )
        self._replicas[key] = future
        self._replicas.move_to_end(key)
        while len(self._replicas) > REPLICAS_MAX:
            oldest = next(iter(self._replicas))
            if not self._replicas[oldest].done():
                break
            del self._replicas[oldest]

    def _load_device(
        self, entry: Entry, stack: ExitStack, targets: list[Target], job: LoadJob
    ) -> LoadResult:
        with stack:
            return self._engine.loader.load_device(entry, targets, job)


def open_targets(entry: Entry, request: Any) -> tuple[ExitStack, list[Target]]:
    """Open a request's handles and translate its chunk lists, all checked.

    The stack keeps the mappings; closing it closes them. Raises InvalidRequestError for ranges
    outside the checkpoint or the allocation, DeviceError for unknown GPUs and bad handles.
    """
    if not request.chunks:
        raise InvalidRequestError("chunks is empty: name what to copy to which GPU")
    if entry.checkpoint.is_compressed:
        raise InvalidRequestError(
            f"{entry.name} is compressed, and the offsets of this protocol are those of bytes "
            "before that: save it without --compress, or load it by this store's own protocol"
        )
    targets: list[Target] = []
    with ExitStack() as stack:
        for uuid, chunks in request.chunks.items():
            handles = request.handles[uuid].handles if uuid in request.handles else ()
            pieces: list[list[Piece]] = [[] for _ in handles]
            mappings = [open_handle(uuid, handle.cuda_ipc_handle) for handle in handles]
            for chunk in chunks.chunks:
                if chunk.handle_idx >= len(mappings):
                    raise InvalidRequestError(
                        f"handle_idx {chunk.handle_idx} for GPU {uuid}, which has "
                        f"{len(mappings)} handles"
                    )
                size_bytes = mappings[chunk.handle_idx].size
                pieces[chunk.handle_idx].extend(_pieces(entry, chunk, size_bytes))
            for mapping, placed in zip(mappings, pieces, strict=True):
                stack.callback(_drop, mapping)
                targets.append(
                    Target(device=mapping.device, address=mapping.address, pieces=tuple(placed))
                )
        return stack.pop_all(), targets


def open_handle(uuid: str, handle: bytes) -> native.DeviceMapping:
    """Open a client's device memory; raise InvalidRequestError or DeviceError."""
    if len(handle) != _HANDLE_BYTES:
        raise InvalidRequestError(
            f"a CUDA IPC handle has {_HANDLE_BYTES} bytes, this one for GPU {uuid} has "
            f"{len(handle)}"
        )
    device = device_ordinal(uuid)
    try:
        return native.DeviceMapping(device, handle)
    except native.CudaError as error:
        raise device_error(error, f"cannot open the IPC handle for GPU {uuid}") from error


def _pieces(entry: Entry, chunk: Any, allocation_bytes: int) -> list[Piece]:
    if chunk.src_offset + chunk.size > entry.file_bytes:
        raise InvalidRequestError(
            f"src_offset {chunk.src_offset} + size {chunk.size} is past the end of {entry.name} "
            f"({entry.file_bytes} bytes)"
        )
    if chunk.dst_offset + chunk.size > allocation_bytes:
        raise InvalidRequestError(
            f"dst_offset {chunk.dst_offset} + size {chunk.size} is past the end of the "
            f"allocation behind the handle ({allocation_bytes} bytes)"
        )
    return [
        Piece(image_offset=start, size_bytes=size, arena_offset=chunk.dst_offset + shift)
        for start, size, shift in entry.image_map.find(chunk.src_offset, chunk.size)
    ]


def _drop(mapping: native.DeviceMapping) -> None:
    """Hold a mapping until the stack is closed; it closes when its last reference goes."""
    del mapping


def _path(request: Any) -> str:
    if not request.model_path:
        raise InvalidRequestError("model_path is empty: name a checkpoint under the storage path")
    path: str = request.model_path
    return path
