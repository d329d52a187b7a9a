"""Every exception the store raises, and the gRPC status each one travels as.

The server turns an error into a status code, a message and its class name in the trailing
metadata; the client turns them back into the same class. Nothing returns False to mean failure.
"""

from __future__ import annotations


class StoreError(Exception):
    """Something the store could not do. `str(error)` says what, to what, and what to do."""

    status = "INTERNAL"


class InvalidRequestError(StoreError, ValueError):
    """A request that can never succeed: a bad argument, an unknown device, a range too far."""

    status = "INVALID_ARGUMENT"


class CheckpointNotFoundError(StoreError, FileNotFoundError):
    """No checkpoint has this name."""

    status = "NOT_FOUND"


class InvalidCheckpointError(StoreError, ValueError):
    """A checkpoint that cannot be trusted: the message names the file and the field."""

    status = "FAILED_PRECONDITION"


class ChecksumError(InvalidCheckpointError):
    """Bytes on disk differ from the ones that were saved."""

    status = "DATA_LOSS"


class ReadError(StoreError, OSError):
    """The disk or the file system failed while bytes were being read."""

    status = "DATA_LOSS"


class WriteError(StoreError, OSError):
    """The disk or the file system failed while bytes were being written; nothing was published."""

    status = "INTERNAL"


class PoolExhaustedError(StoreError, MemoryError):
    """The host pool has no room, and everything in it is in use; the message says by whom."""

    status = "RESOURCE_EXHAUSTED"


class PoolTooSmallError(PoolExhaustedError):
    """The host pool can never hold the checkpoint; this process can load it without the store."""


class DeviceError(StoreError, RuntimeError):
    """The GPU driver refused: a bad handle, a lost context, no such device."""

    status = "FAILED_PRECONDITION"


class OutOfDeviceMemoryError(DeviceError, MemoryError):
    """The GPU has too little free memory for the load."""

    status = "RESOURCE_EXHAUSTED"


class InUseError(StoreError):
    """A checkpoint cannot be unloaded or removed while somebody holds it; the message says who."""

    status = "ABORTED"


class DeadlineError(StoreError, TimeoutError):
    """The work did not end before its deadline."""

    status = "DEADLINE_EXCEEDED"


class LoadCancelledError(StoreError):
    """The client that wanted the load is gone, or the server is shutting down."""

    status = "CANCELLED"


class StoreUnavailableError(StoreError, ConnectionError):
    """No store answers at the address."""

    status = "UNAVAILABLE"


class UnauthenticatedError(StoreError, PermissionError):
    """The store wants a token, and this one is missing or wrong."""

    status = "UNAUTHENTICATED"


BY_NAME: dict[str, type[StoreError]] = {
    error.__name__: error
    for error in (
        StoreError,
        InvalidRequestError,
        CheckpointNotFoundError,
        InvalidCheckpointError,
        ChecksumError,
        ReadError,
        WriteError,
        PoolExhaustedError,
        PoolTooSmallError,
        DeviceError,
        OutOfDeviceMemoryError,
        InUseError,
        DeadlineError,
        LoadCancelledError,
        StoreUnavailableError,
        UnauthenticatedError,
    )
}
