"""POST /api/generate and /api/chat: answers as lines of JSON, or whole."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.gateway.asking import collect
from sllm.gateway.declared import answering, failing
from sllm.gateway.failures import describe
from sllm.gateway.ollama.answers import Chatted, Failed, Generated
from sllm.gateway.ollama.bodies import ChatBody, GenerateBody
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.shapes import ollama_error
from sllm.gateway.streams import NDJSON, Stream, line, unless_gone
from sllm.text.parser import Content, Thinking, ToolCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sllm.gateway.asking import Asking, Ending
    from sllm.gateway.service import Service
    from sllm.text.stream import TokenReport

Body = GenerateBody | ChatBody
NS_PER_S = 1_000_000_000

routes = APIRouter(responses=failing(Failed))


@routes.post("/api/generate", responses=answering(Generated, stream=NDJSON))
async def generate(body: GenerateBody, request: Request, here: Here) -> Response:
    """Return what the model says to a prompt; an empty one loads it, or unloads it."""
    return await _answer(body, request, here)


@routes.post("/api/chat", responses=answering(Chatted, stream=NDJSON))
async def chat(body: ChatBody, request: Request, here: Here) -> Response:
    """Return a conversation's next message; no messages load the model, or unload it."""
    return await _answer(body, request, here)


def now_text() -> str:
    """Return the time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def _answer(body: Body, request: Request, here: Service) -> Response:
    began_s = time.monotonic()
    if body.is_empty:
        return await _load(body, request, here)
    asking = await unless_gone(request, here.ask([body.asked()], logprobs=body.wanted_logprobs))
    if body.stream:
        return Stream(_lines(body, asking, began_s), media_type=NDJSON, close=asking.close)
    (whole,) = await unless_gone(request, collect(asking))
    told = _told(body, whole.content, whole.thinking, whole.calls)
    if whole.logprobs:
        told["logprobs"] = _logprobs(whole.logprobs)
    return JSONResponse({**told, **_closing(body, asking, whole.ending, began_s)})


async def _load(body: Body, request: Request, here: Service) -> Response:
    """Have the model loaded, or unloaded if it is to stay for no time."""
    if body.keep_alive_s == 0:
        await here.unload(body.model)
        reason = "unload"
    else:
        work = here.host.lease(body.model, keep_alive_s=body.keep_alive_s)
        (await unless_gone(request, work)).release()
        reason = "load"
    told = {**_told(body, "", "", ()), "done": True, "done_reason": reason}
    if not body.stream:
        return JSONResponse(told)
    return Response(line(told), media_type=NDJSON)


async def _lines(body: Body, asking: Asking, began_s: float) -> AsyncGenerator[str]:
    try:
        async for delta in asking:
            content = "".join(part.text for part in delta.parts if isinstance(part, Content))
            thinking = "".join(part.text for part in delta.parts if isinstance(part, Thinking))
            calls = [part for part in delta.parts if isinstance(part, ToolCall)]
            if content or thinking or calls or delta.logprobs:
                told = _told(body, content, thinking, calls) | {"done": False}
                if delta.logprobs:
                    told["logprobs"] = _logprobs(delta.logprobs)
                yield line(told)
            if delta.ending is not None:
                closing = _closing(body, asking, delta.ending, began_s)
                yield line({**_told(body, "", "", ()), **closing})
    except Exception as error:  # noqa: BLE001 - the edge that translates
        yield line(ollama_error(describe(error)))


def _told(body: Body, content: str, thinking: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """Return what an answer says, in the form of its route."""
    head = {"model": body.model, "created_at": now_text()}
    thought = {"thinking": thinking} if thinking else {}
    if isinstance(body, GenerateBody):
        return {**head, "response": content, **thought}
    message: dict[str, Any] = {"role": "assistant", "content": content, **thought}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return {**head, "message": message}


def _closing(body: Body, asking: Asking, ending: Ending, began_s: float) -> dict[str, Any]:
    """Return what the last line says of the whole answer, in nanoseconds."""
    told: dict[str, Any] = {"done": True, "done_reason": str(ending.finish)}
    if isinstance(body, GenerateBody) and not body.raw:
        told["context"] = [*ending.prompt, *ending.answer]
    return told | {
        "total_duration": _ns(time.monotonic() - began_s),
        "load_duration": _ns(asking.lease.load_s),
        "prompt_eval_count": len(ending.prompt),
        "prompt_eval_cached_count": ending.cached,
        "prompt_eval_duration": _ns(ending.prompt_s),
        "eval_count": len(ending.answer),
        "eval_duration": _ns(ending.answer_s),
    }


def _logprobs(logprobs: Sequence[TokenReport]) -> list[dict[str, Any]]:
    def told(one: TokenReport) -> dict[str, Any]:
        return {"token": one.text, "logprob": one.logprob, "bytes": list(one.raw)}

    return [
        told(one) | ({"top_logprobs": [told(other) for other in one.top]} if one.top else {})
        for one in logprobs
    ]


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
