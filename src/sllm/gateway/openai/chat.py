"""POST /v1/chat/completions: a conversation's next message, whole or as it comes."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.core.requests import Finish
from sllm.gateway.asking import collect
from sllm.gateway.declared import answering, failing
from sllm.gateway.failures import describe
from sllm.gateway.openai.answers import ChatCompletion, Failed
from sllm.gateway.openai.bodies import ChatBody  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.shapes import openai_error
from sllm.gateway.streams import DONE, SSE, Stream, event, unless_gone
from sllm.text.parser import Content, Thinking, ToolCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sllm.gateway.asking import Asking, Delta, Ending, Whole
    from sllm.text.parser import Part
    from sllm.text.stream import TokenReport

routes = APIRouter(responses=failing(Failed))


@routes.post("/v1/chat/completions", responses=answering(ChatCompletion, stream=SSE))
async def complete_chat(body: ChatBody, request: Request, here: Here) -> Response:
    """Return an answer to a conversation."""
    work = here.ask([body.asked()], logprobs=body.wanted_logprobs, count=body.n or 1)
    asking = await unless_gone(request, work)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
    if body.stream:
        return Stream(_events(body, head, asking), media_type=SSE, close=asking.close)
    answers = await unless_gone(request, collect(asking))
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "model": body.model,
            "choices": [_choice(index, whole, body) for index, whole in enumerate(answers)],
            "usage": usage([whole.ending for whole in answers]),
        }
    )


def usage(endings: Sequence[Ending], *, prompts: int = 1) -> dict[str, Any]:
    """Return the tokens of answers; several to one prompt count it once."""
    count = max(len(endings) // prompts, 1)
    prompt = sum(len(ending.prompt) for ending in endings[::count])
    answer = sum(len(ending.answer) for ending in endings)
    cached = sum(ending.cached for ending in endings[::count])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": sum(ending.thought for ending in endings),
        },
    }


def call_of(call: ToolCall) -> dict[str, Any]:
    """Return a call of a tool."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _choice(index: int, whole: Whole, body: ChatBody) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.content, "refusal": None}
    if whole.thinking:
        message["reasoning"] = whole.thinking
    if whole.calls:
        message["content"] = whole.content or None
        message["tool_calls"] = [call_of(call) for call in whole.calls]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(whole.logprobs) if body.logprobs else None,
        "finish_reason": _reason(whole.ending, calls=len(whole.calls)),
    }


def _reason(ending: Ending, *, calls: int) -> str:
    return "tool_calls" if calls and ending.finish is Finish.STOP else str(ending.finish)


def _logprobs(logprobs: Sequence[TokenReport]) -> dict[str, Any]:
    def told(one: TokenReport) -> dict[str, Any]:
        return {"token": one.text, "logprob": one.logprob, "bytes": list(one.raw)}

    return {
        "content": [
            {**told(one), "top_logprobs": [told(other) for other in one.top]} for one in logprobs
        ],
        "refusal": None,
    }


async def _events(body: ChatBody, head: dict[str, Any], asking: Asking) -> AsyncGenerator[str]:
    shared = {**head, "object": "chat.completion.chunk", "model": body.model}
    if body.include_usage:
        shared["usage"] = None
    calls = dict.fromkeys(range(len(asking.answers)), 0)
    endings: list[Ending] = []

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return event({**shared, "choices": [{**choice, **more}]})

    try:
        for index in calls:
            yield chunk(index, {"role": "assistant", "content": ""})
        async for delta in asking:
            pieces = _pieces(delta, calls)
            if delta.logprobs and not pieces:
                pieces = [{}]
            for place, piece in enumerate(pieces):
                told = {"logprobs": _logprobs(delta.logprobs)} if delta.logprobs else {}
                yield chunk(delta.index, piece, **({} if place else told))
            if delta.ending is not None:
                endings.append(delta.ending)
                reason = _reason(delta.ending, calls=calls[delta.index])
                yield chunk(delta.index, {}, finish_reason=reason)
        if body.include_usage:
            yield event({**shared, "choices": [], "usage": usage(endings)})
    except Exception as error:  # noqa: BLE001 - the edge that translates
        yield event(openai_error(describe(error)))
        return
    yield DONE


def _pieces(delta: Delta, calls: dict[int, int]) -> list[dict[str, Any]]:
    """Return the deltas of what is new; text that belongs together in one of them."""
    pieces: list[dict[str, Any]] = []
    for part in delta.parts:
        name, value = _piece(part)
        if name == "tool_calls":
            pieces.append({name: [{"index": calls[delta.index], **value}]})
            calls[delta.index] += 1
        elif pieces and name in pieces[-1]:
            pieces[-1][name] += value
        else:
            pieces.append({name: value})
    return pieces


def _piece(part: Part) -> tuple[str, Any]:
    if isinstance(part, Content):
        return "content", part.text
    if isinstance(part, Thinking):
        return "reasoning", part.text
    return "tool_calls", call_of(part)
