"""The store's own service: sessions, planned loads with progress, leases, listing, pinning."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from contextlib import ExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sllm_store.errors import InvalidRequestError, StoreError
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.server.edge import remaining_s, stream, unary
from sllm_store.server.loads import LoadResult
from sllm_store.server.upstream import open_handle
from sllm_store.tiers.device import visible_gpus
from sllm_store.tiers.transfer import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sllm_store import native
    from sllm_store.server.catalog import Entry, PlannedLoad
    from sllm_store.server.engine import Engine
    from sllm_store.server.loads import LoadJob
    from sllm_store.server.sessions import Session

PROGRESS_INTERVAL_S = 0.1


class StoreService(rpc.StoreServicer):
    """storage.Store, method for method."""

    def __init__(self, engine: Engine, descriptor_socket: Path, stopping: asyncio.Event) -> None:
        """Sessions end when `stopping` is set."""
        self._engine = engine
        self._descriptor_socket = descriptor_socket
        self._stopping = stopping
        self.metrics = engine.metrics

    @stream
    async def OpenSession(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Name a session and keep it until the stream ends."""
        session = self._engine.sessions.open(request.client)
        self.metrics.sessions.inc()
        try:
            yield pb.SessionEvent(session=session.session_id)
            await self._stopping.wait()
        finally:
            self.metrics.sessions.dec()
            self._engine.sessions.close(session)

    @unary
    async def PlanLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say where every tensor will be."""
        return await self._engine.blocking(self._plan, request)

    def _plan(self, request: Any) -> Any:
        if not request.model:
            raise InvalidRequestError("model is empty: name a checkpoint under the storage path")
        planned = self._engine.catalog.plan(
            request.model, dict(request.device_map), uuid.uuid4().hex
        )
        checkpoint, plan = planned.entry.checkpoint, planned.plan
        return pb.PlanLoadResponse(
            plan=planned.plan_id,
            arenas=[
                pb.Arena(device=device, size_bytes=arena.size_bytes)
                for device, arena in zip(plan.devices, plan.arenas, strict=True)
            ],
            tensors=[
                pb.TensorSpec(
                    name=tensor.name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    stride=tensor.stride,
                    arena=tensor.arena,
                    offset_bytes=tensor.offset_bytes,
                    buffer=tensor.buffer,
                )
                for tensor in plan.tensors
            ],
            aliases=checkpoint.aliases,
            format=checkpoint.format,
            path=str(checkpoint.directory),
            descriptor_socket=str(self._descriptor_socket),
        )

    @stream
    async def Load(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Move a planned load, telling how far it is; the last event is `done`."""
        session = self._engine.sessions.get(request.session)
        planned = self._engine.catalog.planned(request.plan)
        targets = _match_targets(planned, request.targets)
        default_s = request.timeout_s or self._engine.config.load_timeout_s
        future, control = self._engine.start_load(
            lambda job: self._load(planned, targets, job),
            holder=session.holder,
            timeout_s=remaining_s(context, default_s),
        )
        session.running.add(control)
        delivered = False
        try:
            bytes_total = _bytes_total(planned)
            while not (await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S))[0]:
                yield pb.LoadEvent(bytes_done=control.bytes_done, bytes_total=bytes_total)
            result = future.result()
            delivered = True
            yield self._done_event(session, planned, result)
        finally:
            session.running.discard(control)
            if not delivered:
                control.cancel()
                self._engine.host.wake()
                future.add_done_callback(lambda ended: self._undo(session, ended))

    def _load(self, planned: PlannedLoad, targets: list[Any], job: LoadJob) -> LoadResult:
        """Load the host part, then the devices from it; runs in a thread."""
        loader, entry = self._engine.loader, planned.entry
        held = None
        if "cpu" in planned.plan.devices and entry.chunked.chunks_total:
            held = loader.load_host(entry, job, keep_held=True)
        if not targets:
            return held or LoadResult(tier="host", bytes_read=0, bytes_copied=0, total_s=0.0)
        try:
            copied = self._load_devices(planned, targets, entry, job)
        except BaseException:
            if held is not None and held.held is not None:
                self._engine.host.release(held.held, job.holder)
            raise
        return held or copied

    def _load_devices(
        self, planned: PlannedLoad, targets: list[Any], entry: Entry, job: LoadJob
    ) -> LoadResult:
        with ExitStack() as stack:
            opened = []
            for index, target in targets:
                arena = planned.plan.arenas[index]
                mapping = open_handle(target.device, target.ipc_handle)
                stack.callback(_drop, mapping)
                if target.offset_bytes + arena.size_bytes > mapping.size:
                    raise InvalidRequestError(
                        f"the arena for GPU {target.device} needs {arena.size_bytes} bytes at "
                        f"{target.offset_bytes}, the allocation has {mapping.size}"
                    )
                opened.append(
                    Target(
                        device=mapping.device,
                        address=mapping.address + target.offset_bytes,
                        pieces=arena.pieces,
                    )
                )
            return self._engine.loader.load_device(entry, opened, job)

    def _done_event(self, session: Session, planned: PlannedLoad, result: LoadResult) -> Any:
        lease = ""
        if result.held is not None:
            lease = self._engine.sessions.lease(session, result.held) or ""
            if not lease:
                self._engine.host.release(result.held, session.holder)
                raise InvalidRequestError("the session ended while its load was running")
        bytes_total = _bytes_total(planned)
        return pb.LoadEvent(
            bytes_done=bytes_total,
            bytes_total=bytes_total,
            done=True,
            lease=lease,
            chunks=result.chunks,
            chunk_size=self._engine.config.chunk_bytes,
            tier=result.tier,
        )

    def _undo(self, session: Session, ended: asyncio.Future[LoadResult]) -> None:
        """Give back what a load got that nobody waited for."""
        if ended.cancelled() or ended.exception() is not None:
            return
        held = ended.result().held
        if held is not None:
            self._engine.host.release(held, session.holder)

    @unary
    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        """List the checkpoints under the storage path, the broken ones with their error."""
        return await self._engine.blocking(self._list)

    def _list(self) -> Any:
        models = []
        for name in self._engine.catalog.names():
            entry = self._engine.catalog.inspect(name)
            if isinstance(entry, StoreError):
                models.append(pb.Model(name=name, error=str(entry)))
                continue
            residency = self._engine.host.find(entry.name)
            models.append(
                pb.Model(
                    name=entry.name,
                    format=entry.checkpoint.format,
                    size_bytes=entry.checkpoint.size_bytes,
                    tensors=len(entry.checkpoint.tensors),
                    host_bytes=residency.resident * self._engine.host.chunk_bytes
                    if residency
                    else 0,
                    pinned=bool(residency and residency.pinned),
                    leases=sum(residency.holders.values()) if residency else 0,
                )
            )
        return pb.ListModelsResponse(models=models)

    @unary
    async def SetPinned(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Pin a model, loading it first, or unpin it."""
        engine = self._engine
        entry = await engine.blocking(engine.catalog.get, request.model)
        if request.pinned:
            future, _ = engine.start_load(
                lambda job: engine.loader.load_host(entry, job, keep_held=True),
                holder="a pin",
                timeout_s=remaining_s(context, engine.config.load_timeout_s),
            )
            held = (await future).held
            engine.host.set_pinned(entry.name, pinned=True)
            engine.host.release(held, "a pin")
        else:
            engine.host.set_pinned(entry.name, pinned=False)
        return pb.SetPinnedResponse()

    @unary
    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what this server is and how busy."""
        engine = self._engine
        return pb.GetStatusResponse(
            version=version("serverless-llm"),
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
            devices=visible_gpus(),
        )


def _match_targets(planned: PlannedLoad, targets: Any) -> list[tuple[int, Any]]:
    """Pair each non-empty GPU arena with the client's allocation for it, in order."""
    arenas = [
        index
        for index, (device, arena) in enumerate(
            zip(planned.plan.devices, planned.plan.arenas, strict=True)
        )
        if device != "cpu" and arena.size_bytes
    ]
    given = [target.device for target in targets]
    wanted = [planned.plan.devices[index] for index in arenas]
    if given != wanted:
        raise InvalidRequestError(f"targets are for GPUs {given}, the plan is for {wanted}")
    return list(zip(arenas, targets, strict=True))


def _bytes_total(planned: PlannedLoad) -> int:
    """Bytes to copy to devices, or of the image where there are none."""
    copied = sum(
        piece.size_bytes
        for device, arena in zip(planned.plan.devices, planned.plan.arenas, strict=True)
        if device != "cpu"
        for piece in arena.pieces
    )
    return copied or planned.plan.image.size_bytes


def _drop(mapping: native.DeviceMapping) -> None:
    """Hold a mapping until the stack is closed; it closes when its last reference goes."""
    del mapping
