"""Errors on their way over gRPC: a status, and the name of the error's class beside it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from sllm_store.errors import (
    BY_NAME,
    DeadlineError,
    InvalidRequestError,
    StoreError,
    StoreUnavailableError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR_KEY = "sllm-error"  # Of the trailing metadata.
_BY_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
}


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Raise the store's own errors for failed RPCs."""
    try:
        yield
    except grpc.RpcError as error:
        raise _store_error(error, address) from error


def _store_error(error: Any, address: str) -> StoreError:
    status, details = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and value in BY_NAME:
            return BY_NAME[value](details)
    if status == grpc.StatusCode.UNAVAILABLE:
        tcp = "" if address.startswith("unix:") else " --host or --port, for TCP is off without,"
        return StoreUnavailableError(
            f"no store is running at {address}: start one with `sllm-store start`{tcp} ({details})"
        )
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            f"the store at {address} did not answer before the call's time was up: see "
            "`sllm-store status`, or give it longer"
        )
    return _BY_STATUS.get(status, StoreError)(f"{details} [{status.name}]")
