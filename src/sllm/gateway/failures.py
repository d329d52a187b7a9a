"""What a client is told when something fails: a status, a message, and when to try again."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from sllm.core.errors import (
    CacheFullError,
    ContextLengthError,
    EngineClosedError,
    InvalidRequestError,
    InvalidSamplingError,
    ModelNotFoundError,
    QueueFullError,
    ServingError,
    UnsupportedModelError,
)
from sllm_store.errors import StoreError

_BAD_REQUEST, _NOT_FOUND, _INTERNAL, _UNAVAILABLE = 400, 404, 500, 503
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (ModelNotFoundError, _NOT_FOUND),
    (ContextLengthError, _BAD_REQUEST),
    (InvalidSamplingError, _BAD_REQUEST),
    (InvalidRequestError, _BAD_REQUEST),
    (UnsupportedModelError, _BAD_REQUEST),
    (QueueFullError, _UNAVAILABLE),
    (CacheFullError, _UNAVAILABLE),
    (EngineClosedError, _UNAVAILABLE),
)

# How the message of an InvalidRequestError names a field: "logit_bias: …", "input[0]: …".
_FIELD = re.compile(r"([a-z_]+(?:\.\w+|\[\d+\])*): ")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way to a client, in no API's form yet.

    kind: the name of the error's class. param: the field that is wrong, where that is known.
    """

    status: int
    message: str
    kind: str
    param: str | None = None
    retry_after_s: float | None = None


def describe(error: Exception) -> Failure:
    """Return what to tell of an error. One that nobody has foreseen is logged, once, here."""
    kind = type(error).__name__
    status = next((status for known, status in _STATUSES if isinstance(error, known)), _INTERNAL)
    if isinstance(error, ServingError | StoreError):
        retry_after_s = error.retry_after_s if isinstance(error, QueueFullError) else None
        return Failure(
            status=status,
            message=str(error),
            kind=kind,
            param=_field_of(error),
            retry_after_s=retry_after_s,
        )
    log.error("request crashed", exc_info=error)
    message = f"{kind}: {error} (see the server's log)"
    return Failure(status=status, message=message, kind=kind)


def _field_of(error: Exception) -> str | None:
    named = _FIELD.match(str(error)) if isinstance(error, InvalidRequestError) else None
    return None if named is None else named[1]
