"""What a store tells its clients, as records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentInfo:
    """A model's arena in GPU memory as the store lists it; `device` is the GPU's UUID."""

    device: str
    size_bytes: int
    pinned: bool
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A checkpoint as the store lists it. `error` says why a broken one cannot be loaded.

    `size_bytes` is what its tensors take in memory, `stored_bytes` what its files have of that;
    `pinned` is in the host pool; `leases` are in the pool and in GPU memory.
    """

    name: str
    format: str
    size_bytes: int
    stored_bytes: int
    host_bytes: int
    pinned: bool
    leases: int
    tensors: int
    error: str
    resident: tuple[ResidentInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """What a store is and how busy. `resident_bytes` is GPU memory by the GPU's UUID."""

    version: str
    pid: int
    uptime_s: float
    pool_bytes: int
    pool_used_bytes: int
    chunk_size: int
    pool_pinned: bool
    sessions: int
    leases: int
    loads_running: int
    storage_path: str
    devices: tuple[str, ...]
    gpu_pool_bytes: int
    resident_bytes: dict[str, int]
    local_socket: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEstimate:
    """How long a load would take, and where the bytes are that it would move.

    `wait_s` of the seconds is due to `loads_ahead` loads that run already. `samples` counts the
    loads that this was learned from; with 0 it is a guess.
    """

    seconds: float
    device_bytes: int
    host_bytes: int
    cached_bytes: int
    disk_bytes: int
    wait_s: float
    loads_ahead: int
    samples: int
