"""One client of the soak: load a model at random in some way, check every byte, hold it, let go."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from enum import IntEnum
from random import Random
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.client import SllmStoreClient
from sllm_store.errors import DeadlineError, InUseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.plan import PlacedTensor
    from tests.soak.soak_models import Sums

LOAD_TIMEOUT_S = 120.0
HOLD_MAX_S = 0.01
# Ways to load, and how often each is taken.
WAYS = {"host": 8, "preload": 2, "copy": 6, "split": 2, "shared": 3, "unload": 2, "ask": 1}


class State(IntEnum):
    """What a client is doing, as whoever kills it sees it."""

    IDLE = 0
    LOADING = 1
    HOLDING = 2


class WrongByteError(Exception):
    """A tensor is not what was written."""


class SoakClient:
    """Loads until it is told that there were enough."""

    def __init__(
        self, address: str, sums: Sums, *, seed: int, enter: Callable[[State], None]
    ) -> None:
        """`enter` is told of every change of state."""
        self._client = SllmStoreClient(address)
        self._sums = sums
        self._random = Random(seed)
        self._enter = enter
        self._gpus = [native.device_uuid(device) for device in range(native.device_count())]

    def step(self) -> int:
        """Do one thing; return how many loads that were."""
        way = self._random.choices(list(WAYS), list(WAYS.values()))[0]
        model = self._random.choice(list(self._sums))
        if way == "unload":
            with suppress(InUseError, DeadlineError):  # Other clients may have it all the time.
                self._client.unload_from_cpu(model)
            return 0
        if way == "ask":
            self._client.estimate_load(model)
            return 0
        self._load(model, way)
        return 1

    def _load(self, model: str, way: str) -> None:
        device_map = self._device_map(way)
        self._enter(State.LOADING)
        if way == "preload":
            self._client.load_into_cpu(model)
            self._client.confirm_model_loaded(model)
        loaded = self._client.load(
            model, device_map, shared=way == "shared", timeout_s=LOAD_TIMEOUT_S
        )
        self._enter(State.HOLDING)
        self._check(model, loaded)
        time.sleep(self._random.random() * HOLD_MAX_S)
        self._spoil(loaded)
        del loaded
        self._enter(State.IDLE)

    def _device_map(self, way: str) -> dict[str, str]:
        if way in {"copy", "shared"}:
            return {"": self._random.choice(self._gpus)}
        if way == "split":
            return {"": self._gpus[0], "layers.1": self._gpus[1], "layers.2": "cpu"}
        return {}

    def _check(self, model: str, loaded: Loaded) -> None:
        expected = self._sums[model]
        names = {tensor.name for tensor in loaded.tensors}
        if names != set(expected):
            raise WrongByteError(f"{model}: tensors {sorted(names ^ set(expected))} differ")
        for tensor in loaded.tensors:
            size = contiguous_bytes(tensor.dtype, tensor.shape)
            if _sum(loaded, tensor, size) != expected[tensor.name]:
                where = f"{loaded.devices[tensor.arena]}, from {loaded.tier}"
                raise WrongByteError(f"{model}: {tensor.name} on {where}, {size} bytes")

    def _spoil(self, loaded: Loaded) -> None:
        """Write to what is this process's own: nobody else may see it."""
        for arena in loaded.arenas:
            if isinstance(arena, native.PoolMapping | native.HostBuffer) and arena.size:
                offset = self._random.randrange(arena.size)
                size = min(arena.size - offset, 8192)
                ctypes.memset(arena.address + offset, 0xA5, size)


def _sum(loaded: Loaded, tensor: PlacedTensor, size: int) -> int:
    arena = loaded.arenas[tensor.arena]
    if isinstance(arena, native.PoolMapping | native.HostBuffer):
        return native.crc32c(arena.address + tensor.offset_bytes, size)
    assert isinstance(arena, native.DeviceBuffer | native.DeviceMapping)
    host = ctypes.create_string_buffer(size)
    address = arena.address + tensor.offset_bytes
    native.copy_from_device(arena.device, address, ctypes.addressof(host), size)
    return native.crc32c(ctypes.addressof(host), size)
