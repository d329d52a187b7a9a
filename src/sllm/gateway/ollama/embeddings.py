"""POST /api/embed and /api/embeddings: vectors of texts."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.gateway.declared import answering, failing
from sllm.gateway.embedding import Embedding, embed
from sllm.gateway.ollama.answers import Failed, Vector, Vectors
from sllm.gateway.ollama.bodies import EmbedBody, EmbeddingsBody  # noqa: TC001 - FastAPI reads them.
from sllm.gateway.ollama.generation import NS_PER_S
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.streams import unless_gone

routes = APIRouter(responses=failing(Failed))


@routes.post("/api/embed", responses=answering(Vectors))
async def make_vectors(body: EmbedBody, request: Request, here: Here) -> Response:
    """Return a vector for each text."""
    began_s = time.monotonic()
    wanted = Embedding(
        model=body.model,
        inputs=[body.input] if isinstance(body.input, str) else body.input,
        dimensions=body.dimensions,
        truncate=body.truncate,
        keep_alive_s=body.keep_alive_s,
    )
    found = await unless_gone(request, embed(here.host, wanted))
    return JSONResponse(
        {
            "model": body.model,
            "embeddings": found.vectors,
            "total_duration": round((time.monotonic() - began_s) * NS_PER_S),
            "load_duration": round(found.load_s * NS_PER_S),
            "prompt_eval_count": found.tokens,
        }
    )


@routes.post("/api/embeddings", responses=answering(Vector))
async def make_vector(body: EmbeddingsBody, request: Request, here: Here) -> Response:
    """Return the vector of one text; none for an empty one."""
    inputs = [body.prompt] if body.prompt else []
    wanted = Embedding(model=body.model, inputs=inputs, keep_alive_s=body.keep_alive_s)
    found = await unless_gone(request, embed(here.host, wanted))
    return JSONResponse({"embedding": found.vectors[0] if found.vectors else []})
