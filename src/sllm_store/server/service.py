"""The store's own service: plans, loads with progress, leases, listing, pinning."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sllm_store.errors import InvalidRequestError, StoreError
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.server.edge import remaining_s, stream, unary
from sllm_store.server.estimate import CACHE, DEVICE, DISK, HOST
from sllm_store.server.loads import LoadResult, Meter
from sllm_store.server.sessions import Lease
from sllm_store.server.survey import calls_of, expect
from sllm_store.server.upstream import open_handle
from sllm_store.tiers.transfer import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sllm_store import native
    from sllm_store.checkpoint.layout import Arena
    from sllm_store.server.catalog import Entry
    from sllm_store.server.engine import Engine
    from sllm_store.server.loads import LoadJob
    from sllm_store.server.plans import PlannedLoad
    from sllm_store.server.sessions import Session
    from sllm_store.tiers.resident import ArenaKey

PROGRESS_INTERVAL_S = 0.1
VERSION = version("serverless-llm")
LEASE_TIMEOUT_S = 60.0
SPENT_MAX_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A load as a client asks for it; `targets` are the arenas to fill and the client's memory."""

    planned: PlannedLoad
    targets: list[tuple[Arena, Any]]
    shared: list[tuple[ArenaKey, Arena]]
    began_s: float = 0.0
    meter: Meter = field(default_factory=Meter)


class StoreService(rpc.StoreServicer):
    """storage.Store, method for method."""

    def __init__(self, engine: Engine, descriptor_socket: Path, stopping: asyncio.Event) -> None:
        """Loads whose lease nobody takes end when `stopping` is set."""
        self._engine = engine
        self._descriptor_socket = descriptor_socket
        self._stopping = stopping
        self.metrics = engine.metrics

    @unary
    async def PlanLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say where every tensor will be."""
        return (await self._engine.blocking(self._plan, request)).answer

    def _plan(self, request: Any) -> PlannedLoad:
        if not request.model:
            raise InvalidRequestError("model is empty: name a checkpoint under the storage path")
        return self._engine.catalog.plan(request.model, dict(request.device_map))

    @stream
    async def Load(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Move a load, telling how far it is; the last event is `done`."""
        spent_s = request.spent_s if 0 <= request.spent_s <= SPENT_MAX_S else 0.0
        began_s = time.monotonic() - spent_s
        session = self._engine.sessions.open(request.client)
        self.metrics.sessions.inc()
        try:
            wanted = await self._engine.blocking(self._wanted, request)
            plan = None if request.plan else wanted.planned.answer
            wanted = replace(wanted, began_s=began_s)
            async for event in self._move(session, wanted, request.timeout_s, context):
                if plan is not None:
                    event.plan.CopyFrom(plan)
                    plan = None
                yield event
            if session.leases:  # Until the client has taken its lease.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LEASE_TIMEOUT_S)
        finally:
            self.metrics.sessions.dec()
            self._engine.sessions.close(session)

    def _wanted(self, request: Any) -> _Wanted:
        """Return what a request asks for, planned before or now."""
        if request.shared and request.targets:
            raise InvalidRequestError("a shared load has no targets: the arenas are the store's")
        if request.plan:
            planned = self._engine.catalog.planned(request.plan)
        else:
            planned = self._plan(request.question)
        return _Wanted(
            planned=planned,
            targets=[] if request.shared else _match_targets(planned, request.targets),
            shared=planned.shared if request.shared else [],
        )

    async def _move(
        self, session: Session, wanted: _Wanted, timeout_s: float, context: Any
    ) -> AsyncIterator[Any]:
        """Yield the events of a load; what is resident already is answered at once."""
        planned = wanted.planned
        if wanted.shared and "cpu" not in planned.plan.devices:
            held = self._engine.shared.try_hold(wanted.shared, session.holder)
            if held is not None:
                yield self._done_event(session, planned, held)
                self._learn(wanted, held)
                return
        future, control = self._engine.start_load(
            lambda job: self._load(wanted, replace(job, meter=wanted.meter)),
            holder=session.holder,
            timeout_s=remaining_s(context, timeout_s or self._engine.config.load_timeout_s),
        )
        session.running.add(control)
        delivered = False
        try:
            bytes_total = planned.bytes_total
            while not (await asyncio.wait({future}, timeout=PROGRESS_INTERVAL_S))[0]:
                bytes_done = planned.bytes_done(control.bytes_done)
                yield pb.LoadEvent(bytes_done=bytes_done, bytes_total=bytes_total)
            result = future.result()
            delivered = True
            yield self._done_event(session, planned, result)
            self._learn(wanted, result)
        finally:
            session.running.discard(control)
            if not delivered:
                control.cancel()
                self._engine.wake()
                future.add_done_callback(_undo)

    def _learn(self, wanted: _Wanted, result: LoadResult) -> None:
        """Let estimates know what a load took besides its transfers, and waiting for others."""
        taken_s = time.monotonic() - wanted.began_s
        demand = calls_of(wanted.planned, mapped=bool(wanted.shared) and result.tier == "device")
        spent_s = taken_s - wanted.meter.moved_s - wanted.meter.waited_s
        self._engine.estimator.calls_took(demand, spent_s)

    @unary
    async def EstimateLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say how long a load would take, from what is where now and who is ahead."""
        return await self._engine.blocking(self._estimate, request)

    def _estimate(self, request: Any) -> Any:
        engine = self._engine
        planned = self._plan(request.question)
        demand = expect(planned, engine.host, engine.devices, shared=request.shared)
        estimate = engine.estimator.estimate(demand)
        return pb.EstimateLoadResponse(
            seconds=estimate.seconds,
            device_bytes=demand.sources.get(DEVICE, 0),
            host_bytes=demand.sources.get(HOST, 0),
            cached_bytes=demand.sources.get(CACHE, 0),
            disk_bytes=demand.sources.get(DISK, 0),
            wait_s=estimate.wait_s,
            loads_ahead=estimate.loads_ahead,
            samples=estimate.samples,
        )

    def _load(self, wanted: _Wanted, job: LoadJob) -> LoadResult:
        """Load the host part, then the devices; runs in a thread."""
        engine, planned, entry = self._engine, wanted.planned, wanted.planned.entry
        held = None
        if "cpu" in planned.plan.devices and entry.chunked.chunks_total:
            held = engine.loader.load_host(entry, job, keep_held=True)
        if not wanted.targets and not wanted.shared:
            return held or LoadResult(tier="host", bytes_read=0, bytes_copied=0, total_s=0.0)
        try:
            if wanted.shared:
                moved = engine.shared.load(entry, wanted.shared, job)
            else:
                moved = self._load_devices(wanted.targets, entry, job)
        except BaseException:
            if held is not None:
                held.release()
            raise
        if held is None:
            return moved
        return replace(held, arenas=moved.arenas, holds=(*held.holds, *moved.holds))

    def _load_devices(
        self, targets: list[tuple[Arena, Any]], entry: Entry, job: LoadJob
    ) -> LoadResult:
        with ExitStack() as stack:
            opened = []
            for arena, target in targets:
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
                        decodes=arena.decodes,
                        arena=arena,
                    )
                )
            return self._engine.loader.load_device(entry, opened, job)

    def _done_event(self, session: Session, planned: PlannedLoad, result: LoadResult) -> Any:
        lease = self._engine.sessions.lease(session, Lease(result.holds)) if result.holds else ""
        bytes_total = planned.bytes_total
        return pb.LoadEvent(
            bytes_done=bytes_total,
            bytes_total=bytes_total,
            done=True,
            lease=lease,
            descriptor_socket=str(self._descriptor_socket) if lease else "",
            chunks=result.chunks,
            chunk_size=self._engine.config.chunk_bytes,
            tier=result.tier,
            arenas=[
                pb.SharedArena(
                    device=arena.key.gpu,
                    ipc_handle=arena.ipc_handle,
                    size_bytes=arena.size_bytes,
                )
                for arena in result.arenas
            ],
        )

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
            resident = self._engine.devices.arenas(entry.name)
            models.append(
                pb.Model(
                    name=entry.name,
                    format=entry.checkpoint.format,
                    size_bytes=entry.checkpoint.size_bytes,
                    stored_bytes=entry.checkpoint.stored_bytes,
                    tensors=len(entry.checkpoint.tensors),
                    host_bytes=residency.resident * self._engine.host.chunk_bytes
                    if residency
                    else 0,
                    pinned=bool(residency and residency.pinned),
                    leases=(residency.holders.total() if residency else 0)
                    + sum(arena.leases for arena in resident),
                    resident=[
                        pb.ResidentArena(
                            device=arena.gpu,
                            size_bytes=arena.size_bytes,
                            pinned=arena.pinned,
                            leases=arena.leases,
                        )
                        for arena in resident
                    ],
                )
            )
        return pb.ListModelsResponse(models=models)

    @unary
    async def SetPinned(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Pin a model in the pool or on GPUs, loading it first, or unpin it."""
        engine = self._engine
        wanted = await engine.blocking(self._to_pin, request)
        planned = wanted.planned
        on_host = "cpu" in planned.plan.devices
        if request.pinned:
            future, _ = engine.start_load(
                lambda job: self._load(wanted, job),
                holder="a pin",
                timeout_s=remaining_s(context, engine.config.load_timeout_s),
            )
            result = await future
            try:
                if on_host:
                    engine.host.set_pinned(planned.entry.name, pinned=True)
                engine.devices.pin(result.arenas)
            finally:
                result.release()
        else:
            if on_host:
                engine.host.set_pinned(planned.entry.name, pinned=False)
            if wanted.shared:
                gpus = [key.gpu for key, _ in wanted.shared]
                engine.devices.unpin(planned.entry.name, gpus)
        return pb.SetPinnedResponse()

    def _to_pin(self, request: Any) -> _Wanted:
        question = pb.PlanLoadRequest(model=request.model, device_map=request.device_map)
        return self._wanted(pb.LoadRequest(question=question, shared=True))

    @unary
    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what this server is and how busy."""
        engine = self._engine
        return pb.GetStatusResponse(
            version=VERSION,
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
        )


def _match_targets(planned: PlannedLoad, targets: Any) -> list[tuple[Arena, Any]]:
    """Pair each non-empty GPU arena with the client's allocation for it, in order."""
    given = [target.device for target in targets]
    wanted = [device for device, _ in planned.on_gpus]
    if given != wanted:
        raise InvalidRequestError(f"targets are for GPUs {given}, the plan is for {wanted}")
    return [(arena, target) for (_, arena), target in zip(planned.on_gpus, targets, strict=True)]


def _undo(ended: asyncio.Future[LoadResult]) -> None:
    """Give back what a load got that nobody waited for."""
    if not ended.cancelled() and ended.exception() is None:
        ended.result().release()


def _drop(mapping: native.DeviceMapping) -> None:
    """Hold a mapping until the stack is closed; it closes when its last reference goes."""
    del mapping
