"""GET /v1/models: what can be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from sllm.gateway.declared import answering, failing
from sllm.gateway.openai import answers
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.

if TYPE_CHECKING:
    from sllm.library.model import Model

OWNER = "library"

routes = APIRouter(responses=failing(answers.Failed))


@routes.get("/v1/models", responses=answering(answers.Models))
async def list_models(here: Here) -> Response:
    """Return every model of this machine."""
    models = await asyncio.to_thread(here.library.list)
    return JSONResponse({"object": "list", "data": [_told(model) for model in models]})


@routes.get("/v1/models/{name:path}", responses=answering(answers.Model))
async def tell_model(name: str, here: Here) -> Response:
    """Return one of them."""
    return JSONResponse(_told(await asyncio.to_thread(here.library.get, name)))


def _told(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.modified_at.timestamp()),
        "owned_by": OWNER,
    }
