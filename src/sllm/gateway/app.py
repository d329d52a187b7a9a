"""The application: both APIs, health and metrics, behind one guard."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sllm.core.errors import ServingError
from sllm.gateway import chat_page
from sllm.gateway.access import TOO_LARGE, Guard, JsonBodies
from sllm.gateway.backing import open_here
from sllm.gateway.counting import Counting
from sllm.gateway.declared import answering
from sllm.gateway.failures import Failure, describe
from sllm.gateway.host import ModelHost
from sllm.gateway.metrics import GatewayMetrics
from sllm.gateway.ollama import catalog, embeddings as ollama_embeddings, generation, pulling
from sllm.gateway.openai import chat, completions, embeddings, models, responses
from sllm.gateway.service import Here, Service
from sllm.gateway.shapes import respond
from sllm_store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.models import Library

_BAD_REQUEST, _CLIENT_GONE = 400, 499
_GROUPS = (
    chat,
    completions,
    embeddings,
    models,
    responses,
    generation,
    ollama_embeddings,
    catalog,
    pulling,
)

log = logging.getLogger(__name__)
own = APIRouter()


class Health(BaseModel):
    """GET /health."""

    status: Literal["ok"]
    models: list[str]


def create_app(library: Library, settings: Settings, backing: Backing | None = None) -> FastAPI:
    """Return the application. backing: what opens models; the default is this process."""
    backing = backing or open_here()
    metrics = GatewayMetrics()
    host = ModelHost(library, backing, settings, on_load=metrics.load_seconds.observe)
    metrics.watch(host)
    app = FastAPI(title="gdsllm", docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.service = Service(
        library=library, backing=backing, settings=settings, host=host, metrics=metrics
    )
    app.include_router(own)
    app.include_router(chat_page.routes)
    for group in _GROUPS:
        app.include_router(group.routes)
    for kind in (ServingError, StoreError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_refused)
    app.add_middleware(JsonBodies)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Counting, metrics=metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origin_regex=settings.origin_pattern,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


@own.get("/health", responses=answering(Health))
async def tell_health(here: Here) -> Response:
    """Answer at once; the server lives. Models that are loaded, by name."""
    models = [resident.loaded.model.name for resident in here.host.residents()]
    return JSONResponse({"status": "ok", "models": models})


@own.get("/metrics", response_class=PlainTextResponse)
async def tell_metrics(here: Here) -> Response:
    """Return Prometheus metrics."""
    return Response(generate_latest(here.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load what is to be loaded at the start, beside serving; free everything at the end."""
    service: Service = app.state.service
    loads = [asyncio.create_task(_preload(service, name)) for name in service.settings.preload]
    try:
        yield
    finally:
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await service.host.close()


async def _preload(service: Service, name: str) -> None:
    try:
        (await service.host.lease(name)).release()
    except (ServingError, StoreError, OSError) as error:
        log.warning("%s is not loaded from the start: %s", name, error)
    except Exception:  # Nobody waits for it, and requests try again.
        log.exception("%s is not loaded from the start", name)


async def _on_error(request: Request, error: Exception) -> Response:
    return respond(describe(error), path=request.url.path)


async def _on_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: list[dict[str, Any]] = list(error.errors())
    first = errors[0]
    field = _field_of(first, error.body)
    if first["type"] == "json_invalid":
        message, field = f"the body is not JSON: {first['ctx']['error']}", ""
    elif first["type"] == "missing":
        message = f"{field or 'the body'} is required"
    else:
        # What may be of several kinds has an error for each: those that were got furthest into.
        fields = [_field_of(one, error.body) for one in errors]
        field = [one for one in fields if one == field or one.startswith(f"{field}.")][-1]
        told = [one["msg"] for one, place in zip(errors, fields, strict=True) if place == field]
        message = f"{field or 'the body'}: {', or '.join(dict.fromkeys(told))}"
    failure = Failure(
        status=_BAD_REQUEST, message=message, kind="InvalidRequestError", param=field or None
    )
    return respond(failure, path=request.url.path)


def _field_of(error: dict[str, Any], body: Any) -> str:
    """Return which field an error is about, without the names that pydantic gives to its kinds."""
    path: list[str] = []
    for place, step in enumerate(error["loc"][1:], start=2):
        inner = range(len(body)) if isinstance(body, list) else body
        if isinstance(inner, dict | range) and step in inner:
            body = body[step]
            path.append(str(step))
        elif error["type"] == "missing" and place == len(error["loc"]):
            path.append(str(step))
    return ".".join(path or [str(step) for step in error["loc"][1:2]])


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    if error.status_code == _BAD_REQUEST:  # FastAPI's own, of a body that is neither read nor JSON.
        message = "the body cannot be read: send JSON in UTF-8 that is not nested too deeply"
    elif error.status_code == TOO_LARGE:
        message = error.detail
    failure = Failure(status=error.status_code, message=message, kind="HTTPException")
    return respond(failure, path=request.url.path)
