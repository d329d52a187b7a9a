"""The store's own service: listing, pinning, status. Loads are the local socket's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm_store.errors import StoreError
from sllm_store.proto import storage_pb2 as pb, storage_pb2_grpc as rpc
from sllm_store.server.edge import remaining_s, unary
from sllm_store.server.estimate import CACHE, DEVICE, DISK, HOST
from sllm_store.server.status import describe_status
from sllm_store.server.survey import expect

if TYPE_CHECKING:
    from sllm_store.server.engine import Engine
    from sllm_store.server.loading import Loading, WantedLoad


class StoreService(rpc.StoreServicer):
    """storage.Store, method for method."""

    def __init__(self, engine: Engine, loading: Loading) -> None:
        """What is pinned is loaded first."""
        self._engine = engine
        self._loading = loading
        self.metrics = engine.metrics

    @unary
    async def EstimateLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say how long a load would take, from what is where now and who is ahead."""
        return await self._engine.blocking(self._estimate, request)

    def _estimate(self, request: Any) -> Any:
        engine = self._engine
        planned = self._loading.plan(request.question)
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
                lambda job: self._loading.run(wanted, job),
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

    def _to_pin(self, request: Any) -> WantedLoad:
        question = pb.PlanLoadRequest(model=request.model, device_map=request.device_map)
        return self._loading.wanted(pb.LoadRequest(question=question, shared=True))

    @unary
    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what this server is and how busy."""
        return describe_status(self._engine)
