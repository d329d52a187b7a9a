"""RequestBody: what the bodies of both APIs have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator


class RequestBody(BaseModel):
    """A body, or an object within one. A null is as good as nothing, as both servers take it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: given for name, given in value.items() if given is not None}
        return value
