"""Streamed responses, and work that ends when the client has gone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
DONE = "data: [DONE]\n\n"

T = TypeVar("T")


class Stream(StreamingResponse):
    """Sends what a generator yields, as fast as the client takes it.

    However it ends, also before it began, the generator is closed and `close` is called.
    """

    def __init__(
        self,
        lines: AsyncGenerator[str],
        *,
        media_type: str,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is sent yet."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type=media_type, headers=headers)
        self._lines = lines
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, unless the client goes before."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
            await self._lines.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` does; cancel it and raise ClientDisconnect when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def any_set(*events: asyncio.Event) -> None:
    """Wait until one of several events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def encode(value: Mapping[str, Any]) -> str:
    """Return the JSON of a value, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def event(value: Mapping[str, Any], *, kind: str | None = None) -> str:
    """Return a value as a server-sent event."""
    name = "" if kind is None else f"event: {kind}\n"
    return f"{name}data: {encode(value)}\n\n"


def line(value: Mapping[str, Any]) -> str:
    """Return a value as a line of NDJSON."""
    return encode(value) + "\n"
