"""POST /v1/responses: an answer as a list of items, whole or as it comes; nothing is kept."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.core.requests import Finish
from sllm.gateway.declared import answering, failing
from sllm.gateway.failures import describe
from sllm.gateway.openai import answers
from sllm.gateway.openai.response_bodies import (
    ResponseBody,  # noqa: TC001 - FastAPI reads the annotation.
)
from sllm.gateway.openai.response_items import Output
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.streams import SSE, Stream, event, unless_gone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sllm.gateway.asking import Asking, Ending
    from sllm.gateway.openai.response_items import Event

routes = APIRouter(responses=failing(answers.Failed))


@routes.post("/v1/responses", responses=answering(answers.Response, stream=SSE))
async def respond_to(body: ResponseBody, request: Request, here: Here) -> Response:
    """Return an answer to a conversation."""
    asking = await unless_gone(request, here.ask([body.asked()], logprobs=body.wanted_logprobs))
    written = _Written(body)
    if body.stream:
        return Stream(_events(written, asking), media_type=SSE, close=asking.close)
    return JSONResponse(await unless_gone(request, _whole(written, asking)))


class _Written:
    """A response that is being written."""

    def __init__(self, body: ResponseBody) -> None:
        self._output = Output()
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model,
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None},
            "store": False,
            "temperature": body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools],
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
        }

    async def write(self, asking: Asking) -> AsyncGenerator[Event]:
        """Yield what happens, up to the answer's end. Raises what ends it too early."""
        yield self.told("created", "in_progress")
        yield self.told("in_progress", "in_progress")
        async for delta in asking:
            for one in self._output.feed(delta.parts, delta.said):
                yield one
            if delta.ending is not None:
                cut = delta.ending.finish is Finish.LENGTH
                status = "incomplete" if cut else "completed"
                for one in self._output.close(status):
                    yield one
                reason = {"reason": "max_output_tokens"} if cut else None
                usage = _usage(delta.ending)
                yield self.told(status, status, incomplete_details=reason, usage=usage)

    def told(self, kind: str, status: str, **more: Any) -> Event:
        """Return an event about the response as it is now."""
        state = {"status": status, "error": None, "incomplete_details": None, "usage": None}
        output = list(self._output.items)
        response = {**self._head, **state, "output": output, **more}
        return {"type": f"response.{kind}", "response": response}


async def _whole(written: _Written, asking: Asking) -> Any:
    """Return the response at its end; closes what is asked in any case."""
    last: Event = {}
    try:
        async for one in written.write(asking):
            last = one
    finally:
        asking.close()
    return last["response"]


async def _events(written: _Written, asking: Asking) -> AsyncGenerator[str]:
    numbers = itertools.count()

    def numbered(one: Event) -> str:
        return event({**one, "sequence_number": next(numbers)}, kind=one["type"])

    try:
        async for one in written.write(asking):
            yield numbered(one)
    except Exception as error:  # noqa: BLE001 - the edge that translates
        failure = {"code": "server_error", "message": describe(error).message}
        yield numbered(written.told("failed", "failed", error=failure))


def _usage(ending: Ending) -> dict[str, Any]:
    prompt, answer = len(ending.prompt), len(ending.answer)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": ending.cached, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": ending.thought},
        "total_tokens": prompt + answer,
    }
