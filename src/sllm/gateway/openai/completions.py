"""POST /v1/completions: what follows a plain text."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.gateway.asking import collect
from sllm.gateway.declared import answering, failing
from sllm.gateway.failures import describe
from sllm.gateway.openai.answers import Completion, Failed
from sllm.gateway.openai.bodies import CompletionBody  # noqa: TC001 - FastAPI reads it.
from sllm.gateway.openai.chat import usage
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.shapes import openai_error
from sllm.gateway.streams import DONE, SSE, Stream, event, unless_gone
from sllm.text.parser import Content

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sllm.gateway.asking import Asking, Ending
    from sllm.text.stream import TokenReport

routes = APIRouter(responses=failing(Failed))


@routes.post("/v1/completions", responses=answering(Completion, stream=SSE))
async def complete(body: CompletionBody, request: Request, here: Here) -> Response:
    """Return what follows each prompt."""
    asked = body.asked()
    work = here.ask(asked, logprobs=body.logprobs, count=body.n or 1)
    asking = await unless_gone(request, work)
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }
    if body.stream:
        events = _events(body, head, asking, prompts=len(asked))
        return Stream(events, media_type=SSE, close=asking.close)
    answers = await unless_gone(request, collect(asking))
    choices = [
        {
            "index": index,
            "text": whole.content,
            "logprobs": _logprobs(whole.logprobs, 0) if body.logprobs is not None else None,
            "finish_reason": str(whole.ending.finish),
        }
        for index, whole in enumerate(answers)
    ]
    told = usage([whole.ending for whole in answers], prompts=len(asked))
    return JSONResponse({**head, "choices": choices, "usage": told})


async def _events(
    body: CompletionBody, head: dict[str, Any], asking: Asking, *, prompts: int
) -> AsyncGenerator[str]:
    shared = head | ({"usage": None} if body.include_usage else {})
    offsets = dict.fromkeys(range(len(asking.answers)), 0)
    endings: dict[int, Ending] = {}
    try:
        async for delta in asking:
            text = "".join(part.text for part in delta.parts if isinstance(part, Content))
            ending = delta.ending
            choice = {
                "index": delta.index,
                "text": text,
                "logprobs": _logprobs(delta.logprobs, offsets[delta.index])
                if delta.logprobs
                else None,
                "finish_reason": None if ending is None else str(ending.finish),
            }
            offsets[delta.index] += len(text)
            if ending is not None:
                endings[delta.index] = ending
            if text or delta.logprobs or ending is not None:
                yield event({**shared, "choices": [choice]})
        if body.include_usage:
            told = usage([ending for _, ending in sorted(endings.items())], prompts=prompts)
            yield event({**shared, "choices": [], "usage": told})
    except Exception as error:  # noqa: BLE001 - the edge that translates
        yield event(openai_error(describe(error)))
        return
    yield DONE


def _logprobs(logprobs: Sequence[TokenReport], offset: int) -> dict[str, Any]:
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.text)
    return {
        "tokens": [one.text for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [
            None if one.logprob is None else {other.text: other.logprob for other in one.top}
            for one in logprobs
        ],
        "text_offset": offsets,
    }
