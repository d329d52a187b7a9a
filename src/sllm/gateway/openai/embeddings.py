"""POST /v1/embeddings: vectors of texts."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.gateway.declared import answering, failing
from sllm.gateway.embedding import Embedding, embed
from sllm.gateway.openai.answers import Embeddings, Failed
from sllm.gateway.openai.bodies import Ids  # noqa: TC001 - pydantic reads the annotation.
from sllm.gateway.request_body import RequestBody
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.streams import unless_gone

routes = APIRouter(responses=failing(Failed))


class EmbeddingsBody(RequestBody):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1)]
    input: str | Ids | list[str] | list[Ids]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def wanted(self) -> Embedding:
        """Return what is asked for."""
        single = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        inputs: Any = [self.input] if single else self.input
        return Embedding(
            model=self.model, inputs=inputs, dimensions=self.dimensions, truncate=False
        )


@routes.post("/v1/embeddings", responses=answering(Embeddings))
async def make_embeddings(body: EmbeddingsBody, request: Request, here: Here) -> Response:
    """Return a vector for each text."""
    found = await unless_gone(request, embed(here.host, body.wanted()))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(vector) if body.encoding_format == "base64" else vector,
        }
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
