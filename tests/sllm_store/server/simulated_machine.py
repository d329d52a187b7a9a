"""A machine in simulated time, whose loads an estimator learns from and predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from sllm_store.server.estimate import CACHE, DEVICE, DISK, HOST, Demand

if TYPE_CHECKING:
    from sllm_store.server.estimate import Estimator

GB = 10**9
MODELS = {"a": (16 * GB, 291), "b": (4 * GB, 20_000), "c": (1 * GB, 300), "d": (8 * GB, 1000)}


@dataclass
class Machine:
    """Loads one at a time in simulated time: reads and copies overlap, the slowest bounds."""

    disk: float = 4e9
    cache: float = 45e9
    link: float = 55e9
    device: float = 2e12
    fixed_s: float = 0.002
    call_s: float = 0.006
    tensor_s: float = 2e-6
    noise: float = 0.01
    random: Random = field(default_factory=lambda: Random(0))
    now_s: float = 0.0

    def clock(self) -> float:
        return self.now_s

    def transfer_s(self, demand: Demand) -> float:
        size = dict.fromkeys((DISK, CACHE, HOST, DEVICE), 0) | dict(demand.sources)
        memory_s = size[CACHE] / self.cache + size[HOST] / self.link + size[DEVICE] / self.device
        if not demand.gpus:
            memory_s = size[CACHE] / self.cache
        exact = self.fixed_s + max(size[DISK] / self.disk, memory_s)
        return exact * max(0.5, self.random.gauss(1, self.noise))

    def load(self, estimator: Estimator, demand: Demand) -> tuple[float, float]:
        """Return what was estimated before, and what it took."""
        estimated_s = estimator.estimate(demand).seconds
        started_s = self.now_s
        call_s = self.call_s + demand.tensors * self.tensor_s
        self.now_s += call_s
        if demand.reads or demand.gpus:  # What is in the host's memory is mapped by the host.
            running = estimator.begin(demand)
            self.now_s += self.transfer_s(demand)
            estimator.finish(running, demand.sources)
        estimator.calls_took(demand, call_s)
        return estimated_s, self.now_s - started_s


def demand(model: str, *, gpu: bool = True, **parts: float) -> Demand:
    """A load of a model, by the part of it that each source has."""
    size_bytes, tensors = MODELS[model]
    return Demand(
        model=model,
        sources={source: int(size_bytes * part) for source, part in parts.items()},
        gpus={"gpu0": size_bytes} if gpu else {},
        tensors=tensors,
    )
