"""A client's side of a lease: take it to the store's descriptor socket, and map what it holds."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.errors import StoreError, StoreUnavailableError
from sllm_store.tiers.device import device_error, device_ordinal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenLease:
    """A lease's connection, which every mapping duplicates, and the pool's descriptor."""

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


@contextmanager
def take_lease(descriptor_socket: str, lease: str) -> Iterator[TakenLease]:
    """Yield a lease to map memory with; it ends with the last mapping.

    Raises StoreUnavailableError where the socket cannot be reached, or the lease is refused.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(descriptor_socket)
            connection.sendall(lease.encode())
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if not descriptors:
                raise StoreUnavailableError(
                    f"{descriptor_socket} refused the lease: does the store run as another user?"
                )
            try:
                yield TakenLease(connection=connection.fileno(), pool=descriptors[0])
            finally:
                os.close(descriptors[0])
    except StoreError:
        raise
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot get the store's memory from {descriptor_socket}: {error}; host loads and "
            "shared ones work only on the store's own machine, as its own user"
        ) from error
