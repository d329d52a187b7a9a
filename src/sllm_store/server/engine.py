"""The server's parts together, and the bridge from its event loop to blocking loads."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sllm_store import native
from sllm_store.errors import DeadlineError, InvalidRequestError, LoadCancelledError
from sllm_store.server.catalog import Catalog
from sllm_store.server.estimate import Estimator
from sllm_store.server.lane_memory import LaneMemory, lane_memory
from sllm_store.server.loads import Loader, LoadJob, Means
from sllm_store.server.metrics import StoreMetrics
from sllm_store.server.sessions import Sessions
from sllm_store.server.shared import SharedLoader
from sllm_store.server.start_rates import disk_rate, link_rates
from sllm_store.tiers.device import visible_gpus
from sllm_store.tiers.fan_in import plan_neighbours
from sllm_store.tiers.host import HostTier, Patience
from sllm_store.tiers.resident import DeviceTier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from sllm_store.config import StoreConfig

LOADS_MAX = 1024
KEEP_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Executors:
    """Threads for what must not block the event loop.

    Loads wait for chunks and for disks in an executor of their own, so that the short calls that
    free chunks always find a thread. `frees` has one thread: GPU memory is freed in it.
    """

    calls: Executor
    loads: Executor
    frees: Executor


class Engine:
    """Owns the pool and everything that keeps books about it."""

    def __init__(self, config: StoreConfig, pool: native.SharedPool, executors: Executors) -> None:
        """Wire the parts; the pool is populated and pinned by the caller."""
        self.config = config
        self.pool = pool
        self.host = HostTier(config.chunks_total, config.chunk_bytes)
        self.devices = DeviceTier(config.gpu_pool_bytes, executors.frees)
        self.gpus = visible_gpus()
        self.metrics = StoreMetrics(self.host, pool.size, self.devices, self.gpus)
        self.catalog = Catalog(
            config.storage_path,
            self._retire,
            chunk_bytes=config.chunk_bytes,
            registration_required=config.registration_required,
        )
        neighbours = _neighbours(config, len(self.gpus))
        self._lanes = _lane_memory(config)
        self.estimator = Estimator(
            time.monotonic,
            self._lanes.recall() if self._lanes else None,
            disk_rate(config.storage_path, config.read_mode, os.environ)
            | link_rates(pool, self.gpus, neighbours),
            {
                self.gpus[gpu]: [self.gpus[other] for other in others]
                for gpu, others in neighbours.items()
            },
        )
        self._kept_s = time.monotonic()
        self.loader = Loader(
            pool,
            self.host,
            self.devices,
            means=Means(
                mode=config.read_mode,
                threads=config.threads,
                neighbours=neighbours,
                stock=native.LinkStock(),
            ),
            estimator=self.estimator,
            on_load=self.metrics.on_load,
        )
        self.shared = SharedLoader(self.loader, self.devices, self.metrics)
        self.sessions = Sessions(self.metrics.sessions)
        self.started_s = time.monotonic()
        self.running: dict[asyncio.Future[Any], native.Control] = {}
        self._calls = executors.calls
        self._loads = executors.loads

    async def blocking(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a short blocking call off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._calls, functools.partial(function, *args, **kwargs))

    def beside(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a short call off the event loop, for which nobody waits."""
        self._calls.submit(function, *args)

    def start_load(
        self, function: Callable[[LoadJob], Any], *, holder: str, timeout_s: float
    ) -> tuple[asyncio.Future[Any], native.Control]:
        """Run a load off the event loop; it is cancelled when its time is up.

        The future raises DeadlineError then. Cancel with the control and wait for the future:
        memory is in use until it is done.
        """
        if len(self.running) >= LOADS_MAX:
            raise InvalidRequestError(f"{LOADS_MAX} loads are running or waiting: try again later")
        control = native.Control()
        deadline_s = time.monotonic() + timeout_s
        job = LoadJob(holder=holder, control=control, deadline_s=deadline_s)
        # Its thread wakes up now, not when the event loop comes to the task.
        ended = asyncio.get_running_loop().run_in_executor(self._loads, _run_job, function, job)
        future = asyncio.ensure_future(self._end(ended, job, timeout_s))
        self.running[future] = control
        future.add_done_callback(self._ended)
        return future, control

    async def _end(self, ended: asyncio.Future[Any], job: LoadJob, timeout_s: float) -> Any:
        timer = asyncio.get_running_loop().call_later(timeout_s, job.control.cancel)
        try:
            return await ended
        except LoadCancelledError as error:
            if time.monotonic() >= job.deadline_s:
                raise DeadlineError(f"the load did not end within {timeout_s:.1f} s") from error
            raise
        finally:
            timer.cancel()

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self.running.pop(future, None)
        if not future.cancelled():
            future.exception()  # Whoever asked has it; nobody asking is not a leak.
        if time.monotonic() - self._kept_s >= KEEP_INTERVAL_S:
            self._kept_s = time.monotonic()
            asyncio.get_running_loop().run_in_executor(self._calls, self.keep)

    def keep(self) -> None:
        """Write down what loads taught, for the next server on this machine."""
        if self._lanes is not None:
            self._lanes.keep(self.estimator.remember())

    def patience(self, timeout_s: float) -> Patience:
        """Wait for others at most timeout_s, on nobody's behalf."""
        return Patience(time.monotonic() + timeout_s, native.Control(), time.monotonic)

    async def drain(self, grace_s: float) -> None:
        """Let running loads end, then cancel those that did not."""
        if self.running:
            await asyncio.wait(list(self.running), timeout=grace_s)
        for control in self.running.values():
            control.cancel()
        self.wake()
        if self.running:
            await asyncio.wait(list(self.running))

    def wake(self) -> None:
        """Let everybody who waits for memory look again whether they still want it."""
        self.host.wake()
        self.devices.wake()

    def _retire(self, model: str) -> None:
        self.host.retire(model)
        self.devices.retire(model)


def _lane_memory(config: StoreConfig) -> LaneMemory | None:
    try:
        return lane_memory(config.storage_path, os.environ)
    except OSError:
        return None


def _neighbours(config: StoreConfig, gpus: int) -> Mapping[int, tuple[int, ...]]:
    """Return whose links each GPU's loads may use, with everything ready for it."""
    if config.fan_in == ():
        return {}
    return plan_neighbours(config.fan_in, gpus=gpus, reaches=native.enable_peer_access)


def _run_job(function: Callable[[LoadJob], Any], job: LoadJob) -> Any:
    """Run a load; if it fails, what it had on its stack goes at once, GPU memory among it.

    The error keeps the frames that it passed, in a cycle that only a garbage collection ends.
    """
    try:
        return function(job)
    except BaseException as error:
        chained: BaseException | None = error
        while chained is not None:
            traceback.clear_frames(chained.__traceback__)
            chained = chained.__context__
        raise
