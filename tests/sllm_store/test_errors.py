"""Errors keep their class over the wire, and answer to the built-in class a caller expects."""

from __future__ import annotations

import inspect

import grpc
import pytest

from sllm_store import errors
from sllm_store.errors import BY_NAME, StoreError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, StoreError)
]


def test_every_error_can_be_found_by_its_name() -> None:
    assert {error.__name__: error for error in CLASSES} == BY_NAME


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_travels_as_a_grpc_status_other_than_ok(error: type[StoreError]) -> None:
    assert grpc.StatusCode[error.status] is not grpc.StatusCode.OK


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_says_what_it_was_given_and_nothing_else(error: type[StoreError]) -> None:
    assert str(error("what happened, to what, what to do")) == "what happened, to what, what to do"
    assert error.__doc__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidRequestError, ValueError),
        (errors.CheckpointNotFoundError, FileNotFoundError),
        (errors.InvalidCheckpointError, ValueError),
        (errors.ChecksumError, errors.InvalidCheckpointError),
        (errors.ReadError, OSError),
        (errors.WriteError, OSError),
        (errors.PoolExhaustedError, MemoryError),
        (errors.PoolTooSmallError, errors.PoolExhaustedError),
        (errors.OutOfDeviceMemoryError, MemoryError),
        (errors.DeadlineError, TimeoutError),
        (errors.StoreUnavailableError, ConnectionError),
        (errors.UnauthenticatedError, PermissionError),
    ],
)
def test_an_error_is_caught_as_the_built_in_one(
    error: type[StoreError], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin):
        raise error("no")
