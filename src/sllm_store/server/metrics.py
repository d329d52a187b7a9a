"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.server.loads import LoadResult
    from sllm_store.tiers.host import HostTier
    from sllm_store.tiers.resident import DeviceTier

_LOAD_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class StoreMetrics:
    """What the server counts. The use of memory is read when scraped."""

    def __init__(
        self, host: HostTier, pool_bytes: int, devices: DeviceTier, gpus: Sequence[str]
    ) -> None:
        """Register everything under names that start with sllm_store_."""
        self.registry = CollectorRegistry()
        self.loads = Counter(
            "sllm_store_loads", "Loads that succeeded, by tier.", ["tier"], registry=self.registry
        )
        self.failures = Counter(
            "sllm_store_failures",
            "Requests that failed, by method and error.",
            ["method", "error"],
            registry=self.registry,
        )
        self.bytes_read = Counter(
            "sllm_store_read_bytes", "Bytes read from files.", registry=self.registry
        )
        self.bytes_copied = Counter(
            "sllm_store_copied_bytes", "Bytes copied to devices.", registry=self.registry
        )
        self.load_seconds = Histogram(
            "sllm_store_load_seconds",
            "Time from the claim to the last byte, by tier.",
            ["tier"],
            buckets=_LOAD_BUCKETS_S,
            registry=self.registry,
        )
        self.sessions = Gauge(
            "sllm_store_sessions", "Clients whose loads run or begin.", registry=self.registry
        )
        Gauge("sllm_store_pool_bytes", "Size of the host pool.", registry=self.registry).set(
            pool_bytes
        )
        Gauge("sllm_store_pool_used_bytes", "Of it, in use.", registry=self.registry).set_function(
            lambda: host.used_bytes
        )
        resident = Gauge(
            "sllm_store_gpu_resident_bytes",
            "GPU memory that the store keeps models in, by GPU.",
            ["gpu"],
            registry=self.registry,
        )
        for gpu in gpus:
            resident.labels(gpu).set_function(partial(devices.used_bytes, gpu))

    def on_load(self, model: str, result: LoadResult) -> None:
        """Count a load; model names are not labels, there may be any number of them."""
        del model
        self.loads.labels(result.tier).inc()
        self.load_seconds.labels(result.tier).observe(result.total_s)
        self.bytes_read.inc(result.bytes_read)
        self.bytes_copied.inc(result.bytes_copied)
