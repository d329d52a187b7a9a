"""Loads as clients of this machine ask for them: planned, run, and held for whoever asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sllm_store.errors import InvalidRequestError
from sllm_store.proto import storage_pb2 as pb
from sllm_store.server.loads import LoadResult, Meter
from sllm_store.server.survey import calls_of
from sllm_store.server.upstream import open_handle
from sllm_store.tiers.transfer import Target

if TYPE_CHECKING:
    from sllm_store import native
    from sllm_store.checkpoint.layout import Arena
    from sllm_store.server.catalog import Entry
    from sllm_store.server.engine import Engine
    from sllm_store.server.loads import LoadJob
    from sllm_store.server.plans import PlannedLoad
    from sllm_store.tiers.resident import ArenaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLoad:
    """A load as a client asks for it; `targets` are the arenas to fill and the client's memory."""

    planned: PlannedLoad
    targets: list[tuple[Arena, Any]]
    shared: list[tuple[ArenaKey, Arena]]
    meter: Meter = field(default_factory=Meter)


class Loading:
    """Turns requests into loads. The methods block, but for planned, try_hold and done_event."""

    def __init__(self, engine: Engine) -> None:
        """Load what the engine's catalog has, with its loaders."""
        self._engine = engine

    def plan(self, request: Any) -> PlannedLoad:
        """Say where every tensor will be."""
        if not request.model:
            raise InvalidRequestError("model is empty: name a checkpoint under the storage path")
        return self._engine.catalog.plan(request.model, dict(request.device_map))

    def prepare(self, planned: PlannedLoad) -> None:
        """Work out what the load of a plan will need, while the client allocates."""
        arenas = [arena for _, arena in planned.on_gpus]
        if arenas:
            self._engine.loader.prepare(planned.entry, arenas)

    def tell(self, question: Any) -> tuple[PlannedLoad, bytes]:
        """Plan a load; return the plan, and the reply that tells it."""
        planned = self.plan(question)
        return planned, planned.reply

    def planned(self, request: Any) -> WantedLoad:
        """Return what a request asks for by a plan's id; `run` sees whether that is out of date."""
        return _wanted(self._engine.catalog.planned(request.plan), request)

    def wanted(self, request: Any) -> WantedLoad:
        """Return what a request asks for, planned now."""
        return _wanted(self.plan(request.question), request)

    def try_hold(self, wanted: WantedLoad, holder: str) -> LoadResult | None:
        """Hold what is resident already; None, without waiting, if something is not."""
        if not wanted.shared or "cpu" in wanted.planned.plan.devices:
            return None
        return self._engine.shared.try_hold(wanted.shared, holder)

    def run(self, wanted: WantedLoad, job: LoadJob) -> LoadResult:
        """Load the host part, then the devices."""
        job = replace(job, meter=wanted.meter)
        engine, planned, entry = self._engine, wanted.planned, wanted.planned.entry
        engine.catalog.require_current(planned)
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
        mappings = []
        opened = []
        # The mappings close before the client is told: it may free what they map at once. It is
        # told of an error too, whose traceback keeps this frame and what is in it.
        try:
            for arena, target in targets:
                mappings.append(open_handle(target.device, target.ipc_handle))
                opened.append(_target(arena, target, mappings[-1]))
            return self._engine.loader.load_device(entry, opened, job)
        finally:
            mappings.clear()

    def learn(self, wanted: WantedLoad, result: LoadResult, taken_s: float) -> None:
        """Let estimates know what a load took besides its transfers, and waiting for others."""
        mapped = bool(wanted.shared) and result.tier == "device"
        demand = calls_of(wanted.planned, bytes_read=result.bytes_read, mapped=mapped)
        spent_s = taken_s - wanted.meter.moved_s - wanted.meter.waited_s
        self._engine.estimator.calls_took(demand, spent_s)

    def done_event(self, planned: PlannedLoad, result: LoadResult) -> Any:
        """Say what a load came to."""
        return pb.LoadEvent(
            bytes_done=planned.bytes_total,
            bytes_total=planned.bytes_total,
            done=True,
            held=bool(result.holds),
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


def _wanted(planned: PlannedLoad, request: Any) -> WantedLoad:
    if request.shared and request.targets:
        raise InvalidRequestError("a shared load has no targets: the arenas are the store's")
    return WantedLoad(
        planned=planned,
        targets=[] if request.shared else _match_targets(planned, request.targets),
        shared=planned.shared if request.shared else [],
    )


def _target(arena: Arena, target: Any, mapping: native.DeviceMapping) -> Target:
    """Return where a client's memory is here; nothing but the caller keeps it open."""
    device, address, size_bytes = mapping.device, mapping.address, mapping.size
    del mapping
    if target.offset_bytes + arena.size_bytes > size_bytes:
        raise InvalidRequestError(
            f"the arena for GPU {target.device} needs {arena.size_bytes} bytes at "
            f"{target.offset_bytes}, the allocation has {size_bytes}"
        )
    return Target(
        device=device,
        address=address + target.offset_bytes,
        pieces=arena.pieces,
        decodes=arena.decodes,
        arena=arena,
    )


def _match_targets(planned: PlannedLoad, targets: Any) -> list[tuple[Arena, Any]]:
    """Pair each non-empty GPU arena with the client's allocation for it, in order."""
    given = [target.device for target in targets]
    wanted = [device for device, _ in planned.on_gpus]
    if given != wanted:
        raise InvalidRequestError(f"targets are for GPUs {given}, the plan is for {wanted}")
    return [(arena, target) for (_, arena), target in zip(planned.on_gpus, targets, strict=True)]
