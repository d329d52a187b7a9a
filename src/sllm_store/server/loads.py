"""The loads themselves: claim chunks, run one transfer, settle the books. Blocking, thread-safe.

A load to a GPU copies from a resident arena where one has its extents: at the memory's own speed on
one GPU, over NVLink from another. Everything else comes through the host pool.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.server.cuts import Cuts
from sllm_store.server.survey import describe_copies, describe_transfer, moved_bytes
from sllm_store.tiers.host import Claim, HostTier, Patience
from sllm_store.tiers.resident import plan_copies
from sllm_store.tiers.ring_steps import alternate, find_cold, take_turns
from sllm_store.tiers.transfer import Moves, Target, TransferPlan, open_files, run_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.native import Control, File, LinkStock, SharedPool, TransferReport
    from sllm_store.server.catalog import Entry
    from sllm_store.server.cuts import Cut, Delivery
    from sllm_store.server.estimate import Demand, Estimator
    from sllm_store.tiers.resident import DeviceTier, ResidentArena


@dataclass(slots=True)
class Meter:
    """Where the time of one load went: transfers, and waiting for others."""

    moved_s: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadJob:
    """Who wants a load, until when, and the control to watch or cancel it with."""

    holder: str
    control: Control
    deadline_s: float
    meter: Meter = field(default_factory=Meter)

    def patience(self) -> Patience:
        """Wait as long as the job may take."""
        return Patience(self.deadline_s, self.control, time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load did. The caller ends each of `holds`, on chunks and arenas, by calling it."""

    tier: str
    bytes_read: int
    bytes_copied: int
    total_s: float
    chunks: tuple[int, ...] = ()
    arenas: tuple[ResidentArena, ...] = ()
    holds: tuple[Callable[[], None], ...] = ()

    def release(self) -> None:
        """End the load's holds."""
        for end_hold in self.holds:
            end_hold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How a loader moves bytes: how and with how many threads it reads, and over which links.

    neighbours[gpu] are the GPUs that lend theirs to loads of that GPU. What links need of GPUs is
    kept in `stock` from load to load.
    """

    mode: str
    threads: int
    neighbours: Mapping[int, tuple[int, ...]]
    stock: LinkStock


class Loader:
    """Runs loads against one pool."""

    def __init__(
        self,
        pool: SharedPool,
        host: HostTier,
        devices: DeviceTier,
        *,
        means: Means,
        estimator: Estimator,
        on_load: Callable[[str, LoadResult], None],
    ) -> None:
        """on_load is told of every load that succeeded, with the model's name.

        The estimator learns from every transfer.
        """
        self._pool = pool
        self._host = host
        self._devices = devices
        self._means = means
        self._estimator = estimator
        self._on_load = on_load
        self._cuts = Cuts()

    def load_host(self, entry: Entry, job: LoadJob, *, keep_held: bool) -> LoadResult:
        """Bring a whole image into the pool; with keep_held the caller gets a hold on it."""
        wanted = range(entry.chunked.chunks_total)
        claim, moved = self._fill(entry, wanted, job)
        residency = claim.residency
        chunks = tuple(chunk for chunk in residency.chunks if chunk is not None)
        assert len(chunks) == len(wanted)
        if not keep_held:
            self._host.release(residency, job.holder)
        holds = (partial(self._host.release, residency, job.holder),) if keep_held else ()
        result = LoadResult(
            tier=_tier(claim),
            bytes_read=moved.bytes_read,
            bytes_copied=moved.bytes_copied,
            total_s=moved.total_s,
            chunks=chunks,
            holds=holds,
        )
        self._on_load(entry.name, result)
        return result

    def prepare(self, entry: Entry, arenas: Sequence[Arena]) -> None:
        """Work out now what a load of these arenas will need soon."""
        self._cuts.prepare(arenas, entry.chunked)

    def load_device(self, entry: Entry, targets: Sequence[Target], job: LoadJob) -> LoadResult:
        """Copy to devices, from resident arenas where they have what is wanted, else from the host.

        What comes from the host passes through whichever chunks are or get resident.
        """
        started_s = time.monotonic()
        rest = []
        sourced = []
        with ExitStack() as held:
            for target in targets:
                source = self._find_source(entry, target, job)
                if source is None:
                    rest.append(target)
                    continue
                held.callback(self._devices.release, source, job.holder)
                sourced.append((source, target))
            tiers = {"device"} if sourced else set()
            read, copied = 0, self._copy_resident(entry, sourced, job)
        if rest or not sourced:
            delivery = self._cuts.deliver(rest, entry.chunked)
            claim, moved = self._fill(entry, delivery.cut.wanted, job, delivery)
            self._host.release(claim.residency, job.holder)
            tiers.add(_tier(claim))
            read, copied = moved.bytes_read, copied + moved.bytes_copied
        result = LoadResult(
            tier=tiers.pop() if len(tiers) == 1 else "mixed",
            bytes_read=read,
            bytes_copied=copied,
            total_s=time.monotonic() - started_s,
        )
        self._on_load(entry.name, result)
        return result

    def _find_source(self, entry: Entry, target: Target, job: LoadJob) -> ResidentArena | None:
        if target.arena is None:
            return None
        return self._devices.hold_source(
            entry.name,
            entry.checkpoint.version,
            target.arena.offsets,
            gpu=native.device_uuid(target.device),
            holder=job.holder,
        )

    def _copy_resident(
        self, entry: Entry, sourced: Sequence[tuple[ResidentArena, Target]], job: LoadJob
    ) -> int:
        """Copy from resident arenas, one step each; return the bytes."""
        plan = TransferPlan()
        extents = entry.checkpoint.extents
        for index, (source, target) in enumerate(sourced):
            assert source.memory is not None
            assert target.arena is not None
            copies = plan_copies(source.arena, target.arena, lambda e: extents[e].size_bytes)
            moves = Moves([(index, into, size, at) for at, into, size in copies], [])
            plan.add(source.memory.address, moves=moves)
        if not plan.copies:
            return 0
        targets = [target for _, target in sourced]
        self._run(plan, [], targets, job, demand=describe_copies(entry, targets))
        return plan.bytes_total

    def _fill(
        self,
        entry: Entry,
        wanted: Sequence[int],
        job: LoadJob,
        delivery: Delivery | None = None,
    ) -> tuple[Claim, _Moved]:
        """Claim, transfer, commit. On return the model is held by job.holder; on error it is not.

        Without targets to copy to, the whole image is brought into the pool.
        Only the one load that reads keeps others of the same model waiting: a load that finds
        everything resident lets the next one in at once.
        """
        patience = job.patience()
        residency = self._host.enter(
            entry.name, entry.checkpoint.version, entry.chunked.chunks_total
        )
        filling = False
        entered_s = time.monotonic()
        try:
            self._host.begin_fill(residency, patience)
            filling = True
            claim = self._host.claim(
                residency, wanted, whole=delivery is None, holder=job.holder, patience=patience
            )
            job.meter.waited_s += time.monotonic() - entered_s
            if claim.is_ready:
                self._host.end_fill(residency)
                filling = False
            try:
                delivery = delivery or self._cuts.deliver((), entry.chunked)
                claim = self._in_turn(entry, claim, delivery.cut)
                moved = self._transfer(entry, claim, delivery, job)
            except BaseException:
                self._host.abandon(claim)
                self._host.release(residency, job.holder)
                raise
            self._host.commit(claim)
            return claim, moved
        finally:
            if filling:
                self._host.end_fill(residency)
            self._host.leave(residency)

    def _in_turn(self, entry: Entry, claim: Claim, cut: Cut) -> Claim:
        """Let what the page cache has go through the ring beside what the disk delivers."""
        if not claim.streamed:
            return claim
        cold = find_cold(entry.chunked, open_files(entry.checkpoint), self._means.mode)
        return replace(claim, streamed=alternate(take_turns(claim.streamed, cut.moves), cold))

    def _transfer(self, entry: Entry, claim: Claim, delivery: Delivery, job: LoadJob) -> _Moved:
        """Run one static plan: ready chunks first (they only copy), then those to read."""
        started_s = time.monotonic()
        chunked = entry.chunked
        moves = delivery.cut.moves
        plan = TransferPlan()
        if delivery.targets:
            chunks = [chunk for chunk in delivery.cut.turns if chunk in claim.ready]
            plan = delivery.cut.plan([self._address(claim.ready[c]) for c in chunks], chunks)
        for chunk in take_turns(list(claim.kept), moves):
            address = self._address(claim.kept[chunk])
            plan.add(address, reads=chunked.reads[chunk], moves=moves[chunk])
        last_use = [-1] * len(claim.ring)
        for index, chunk in enumerate(claim.streamed):
            slot = index % len(claim.ring)
            last_use[slot] = plan.add(
                self._address(claim.ring[slot]),
                after=last_use[slot],
                reads=chunked.reads[chunk],
                moves=moves[chunk],
            )
        if not plan.steps:
            return _Moved(0, 0, time.monotonic() - started_s)
        files = open_files(entry.checkpoint) if plan.reads else []
        neighbours = self._means.neighbours
        over = [
            replace(target, via=neighbours.get(target.device, ())) for target in delivery.targets
        ]
        demand = describe_transfer(entry, plan, files, over)
        report = self._run(plan, files, over, job, demand=demand)
        if plan.reads:
            entry.checkpoint.require_unchanged()
        read = report.bytes_direct + report.bytes_buffered
        return _Moved(read, report.bytes_copied, time.monotonic() - started_s)

    def _run(
        self,
        plan: TransferPlan,
        files: Sequence[File],
        targets: Sequence[Target],
        job: LoadJob,
        *,
        demand: Demand,
    ) -> TransferReport:
        means = self._means
        started_s = time.monotonic()
        moved = None
        before, total = job.control.bytes_done, max(plan.bytes_total, 1)
        running = self._estimator.begin(demand, lambda: (job.control.bytes_done - before) / total)
        try:
            report = run_plan(
                plan,
                files,
                targets,
                mode=means.mode,
                threads=means.threads,
                control=job.control,
                stock=means.stock,
            )
            moved = moved_bytes(demand, report)
        finally:
            self._estimator.finish(running, moved)
            job.meter.moved_s += time.monotonic() - started_s
        return report

    def _address(self, pool_chunk: int) -> int:
        return self._pool.address + pool_chunk * self._host.chunk_bytes


@dataclass(frozen=True, slots=True)
class _Moved:
    bytes_read: int
    bytes_copied: int
    total_s: float


def _tier(claim: Claim) -> str:
    """Say where the bytes of a claim came from."""
    if claim.is_ready:
        return "host"
    return "mixed" if claim.ready else "disk"
