"""What the OpenAPI schema says of answers. Routes build their answers themselves; tests compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


def failing(error: type[BaseModel]) -> Responses:
    """Return that whatever fails is told in one shape."""
    return {
        "4XX": {"model": error, "description": "The request cannot be answered"},
        "5XX": {"model": error, "description": "The server cannot answer now"},
    }


def answering(model: type[BaseModel], *, stream: str | None = None) -> Responses:
    """Return what an answer is; stream: the media type it has when it comes in pieces."""
    pieces: dict[str, Any] = {} if stream is None else {"content": {stream: {}}}
    return {200: {"model": model, "description": "The answer", **pieces}}
