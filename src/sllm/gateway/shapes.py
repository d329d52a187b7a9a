"""Errors in the shape that the API of a path has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from sllm.gateway.failures import Failure

OPENAI_PREFIX = "/v1/"
_OPTIONS = "options."
_INTERNAL, _UNAVAILABLE, _TOO_MANY = 500, 503, 429
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_CODES = {
    "UnauthenticatedError": "invalid_api_key",
    "ModelNotFoundError": "model_not_found",
    "QueueFullError": "rate_limit_exceeded",
    "ContextLengthError": "context_length_exceeded",
}


def respond(failure: Failure, *, path: str) -> JSONResponse:
    """Return a response that says what failed."""
    headers = {}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(failure.retry_after_s))
    if failure.kind == "UnauthenticatedError":
        headers["WWW-Authenticate"] = "Bearer"
    if not path.startswith(OPENAI_PREFIX):
        return JSONResponse(ollama_error(failure), failure.status, headers)
    full = failure.status == _UNAVAILABLE and failure.retry_after_s is not None
    return JSONResponse(openai_error(failure), _TOO_MANY if full else failure.status, headers)


def ollama_error(failure: Failure) -> dict[str, Any]:
    """Return Ollama's error."""
    return {"error": failure.message}


def openai_error(failure: Failure) -> dict[str, Any]:
    """Return OpenAI's error. Its options are fields of the body itself."""
    kind = _KINDS.get(failure.status, "invalid_request_error")
    if failure.status >= _INTERNAL:
        kind = "rate_limit_error" if failure.retry_after_s is not None else "api_error"
    return {
        "error": {
            "message": failure.message.removeprefix(_OPTIONS),
            "type": kind,
            "param": failure.param and failure.param.removeprefix(_OPTIONS),
            "code": _CODES.get(failure.kind),
        }
    }
