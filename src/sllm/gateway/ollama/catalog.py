"""What Ollama's API tells of models, and how it changes them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import JSONResponse, Response

from sllm.core.errors import InvalidRequestError
from sllm.gateway.declared import answering, failing
from sllm.gateway.ollama.answers import Failed, RunningModels, Shown, Status, Tags, Version
from sllm.gateway.ollama.bodies import Name, Named
from sllm.gateway.options import require_usable
from sllm.gateway.request_body import RequestBody
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.streams import NDJSON, line
from sllm.library.description import list_tensors
from sllm.library.modelfile import format_modelfile, format_parameters
from sllm.text.template import ChatTemplate

if TYPE_CHECKING:
    from sllm.gateway.host import Resident
    from sllm.library.model import Model
    from sllm.runtime.weights.forecast import Forecast

FOR_EVER = timedelta(days=365 * 100)  # No client of Ollama's knows a model without an end.
_UNITS = ((1_000_000_000, "B"), (1_000_000, "M"), (1000, "K"))

routes = APIRouter(responses=failing(Failed))


class CopyBody(RequestBody):
    """POST /api/copy."""

    source: Name
    destination: Name


class ShowBody(Named):
    """POST /api/show."""

    verbose: bool = False


class CreatedMessage(RequestBody):
    """A message that every conversation begins with."""

    role: str
    content: str


class CreateBody(Named):
    """POST /api/create."""

    from_: Annotated[str | None, Field(alias="from")] = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    quantize: str | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[CreatedMessage] | None = None
    stream: bool = True


@routes.head("/api/version", include_in_schema=False)
@routes.get("/api/version", responses=answering(Version))
async def tell_version() -> Response:
    """Return this package's version."""
    return JSONResponse({"version": version("serverless-llm")})


@routes.head("/api/tags", include_in_schema=False)
@routes.get("/api/tags", responses=answering(Tags))
async def list_tags(here: Here) -> Response:
    """Return every model of this machine."""
    models = await asyncio.to_thread(here.library.list)
    told = [
        {**_told(model), "modified_at": model.modified_at.isoformat(), "size": model.size_bytes}
        for model in models
    ]
    return JSONResponse({"models": told})


@routes.head("/api/ps", include_in_schema=False)
@routes.get("/api/ps", responses=answering(RunningModels))
async def list_loaded(here: Here) -> Response:
    """Return the models that are loaded, and until when."""
    return JSONResponse({"models": [_resident(one) for one in here.host.residents()]})


@routes.post("/api/show", responses=answering(Shown))
async def show(body: ShowBody, here: Here) -> Response:
    """Return all that is known of a model."""
    model = await here.find(body.model)
    text = await here.text_of(model)
    info = {
        name: value
        for name, value in model.info.items()
        if body.verbose or not isinstance(value, list | tuple)
    }
    tensors = {}
    if body.verbose:
        tensors = {"tensors": await asyncio.to_thread(list_tensors, model.path)}
    return JSONResponse(
        {
            "license": model.license or "",
            "modelfile": format_modelfile(model),
            "parameters": "\n".join(format_parameters(model)),
            "template": text.template,
            "system": model.system or "",
            "messages": [{"role": role, "content": said} for role, said in model.messages],
            "details": _details(model),
            "model_info": info,
            **tensors,
            "capabilities": sorted(text.capabilities),
            "modified_at": model.modified_at.isoformat(),
        }
    )


@routes.post("/api/copy", response_class=Response)
async def copy(body: CopyBody, here: Here) -> Response:
    """Give a model a second name."""
    await asyncio.to_thread(here.library.copy, body.source, body.destination)
    return Response()


@routes.delete("/api/delete", response_class=Response)
async def delete(body: Named, here: Here) -> Response:
    """Forget a model; who has it loaded keeps it until the end of the request."""
    model = await here.find(body.model)
    here.host.unload(model.name)
    await asyncio.to_thread(here.library.remove, model.name)
    return Response()


@routes.post("/api/create", responses=answering(Status, stream=NDJSON))
async def create(body: CreateBody, here: Here) -> Response:
    """Make a model out of another one, with other settings."""
    if not body.from_ or body.files or body.adapters or body.quantize:
        raise InvalidRequestError(
            "create: only `from` a model of this machine; files, adapters and quantize are not "
            "supported: pull the files' path with gdsllm instead"
        )
    require_usable(body.parameters or {})
    if body.template:
        ChatTemplate(body.template)
    given = body.license
    await asyncio.to_thread(
        here.library.create,
        body.model,
        source=body.from_,
        template=body.template,
        system=body.system,
        parameters=body.parameters,
        license="\n".join(given) if isinstance(given, list) else given,
        messages=[(one.role, one.content) for one in body.messages or ()],
    )
    if not body.stream:
        return JSONResponse({"status": "success"})
    steps = ("using existing layer", "writing manifest", "success")
    return Response("".join(line({"status": step}) for step in steps), media_type=NDJSON)


@routes.post("/api/push")
async def push(_body: Named) -> Response:
    """Refuse: there is nowhere to push to."""
    raise InvalidRequestError("push: models are not published from here; share their files instead")


@routes.head("/api/blobs/{digest}", include_in_schema=False)
async def find_blob() -> Response:
    """Say that there is none: models are made from names and paths."""
    return Response(status_code=404)


@routes.post("/api/blobs/{digest}")
async def take_blob(digest: str) -> Response:
    """Refuse files: they are read where they are."""
    raise InvalidRequestError(
        f"blobs: {digest[:80]} cannot be uploaded; `gdsllm pull` takes a file where it is"
    )


def _told(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "digest": model.digest.removeprefix("sha256:"),
        "details": _details(model),
    }


def _details(model: Model) -> dict[str, Any]:
    details = model.details
    return {
        "parent_model": "",
        "format": details.format,
        "family": details.family,
        "families": list(details.families),
        "parameter_size": _count(details.parameter_size),
        "quantization_level": details.quantization,
    }


def _count(parameters: int) -> str:
    for unit, name in _UNITS:
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return str(parameters)


def _resident(resident: Resident) -> dict[str, Any]:
    state = resident.loaded.engine.state()
    expires_at = resident.expires_at or datetime.now(UTC) + FOR_EVER
    return {
        **_told(resident.loaded.model),
        "size": state.weight_bytes,
        "size_vram": 0 if state.device == "cpu" else state.device_bytes,
        "expires_at": expires_at.isoformat(),
        "context_length": state.context_tokens,
        **_forecast(state.forecast),
    }


def _forecast(forecast: Forecast | None) -> dict[str, Any]:
    """Return what the plan says: a field of our own, which Ollama's clients pass over."""
    if forecast is None:
        return {}
    return {
        "forecast": {
            "bound": forecast.bound,
            "tokens_per_s": forecast.tokens_per_s,
            "stored_bytes": asdict(forecast.stored),
            "token_bytes": {
                "device": round(forecast.read_bytes),
                "host": round(forecast.crossing_bytes),
                "disk": round(forecast.fetched_bytes),
            },
            "bytes_per_s": {
                "device": forecast.rates.memory,
                "host": forecast.rates.link,
                "disk": forecast.rates.disk,
            },
            "expert_hit_rate": forecast.hit_rate,
        }
    }
