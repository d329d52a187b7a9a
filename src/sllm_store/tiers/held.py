"""What a load brought and the store holds for a client: to be mapped, and kept by its mappings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.errors import StoreError
from sllm_store.tiers.device import device_error, device_ordinal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """What a load brought, to be mapped: every mapping keeps the connection, which holds it."""

    connection: int
    pool: int

    def map_pool(
        self, chunk_bytes: int, chunks: Sequence[int], size_bytes: int
    ) -> native.PoolMapping:
        """Map pool chunks, in this order; raise StoreError if the system refuses."""
        try:
            return native.PoolMapping(
                self.pool, chunk_bytes, chunks, size_bytes, lease=self.connection
            )
        except native.NativeError as error:
            raise StoreError(f"cannot map the store's memory: {error.strerror}") from error

    def map_device(self, gpu: str, ipc_handle: bytes) -> native.DeviceMapping:
        """Map an arena of the store's in GPU memory; raise DeviceError if the driver refuses."""
        try:
            return native.DeviceMapping(device_ordinal(gpu), ipc_handle, lease=self.connection)
        except native.CudaError as error:
            raise device_error(error, f"cannot map the store's memory on GPU {gpu}") from error
