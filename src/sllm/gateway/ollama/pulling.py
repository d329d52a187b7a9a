"""POST /api/pull: fetch a model, telling how far it is; the client's end is the pull's."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.
from starlette.responses import JSONResponse, Response

from sllm.core.errors import EngineClosedError, QueueFullError
from sllm.gateway.declared import answering, failing
from sllm.gateway.failures import describe
from sllm.gateway.ollama.answers import Failed, Status
from sllm.gateway.ollama.bodies import Named
from sllm.gateway.service import Here  # noqa: TC001 - FastAPI reads the annotation.
from sllm.gateway.shapes import ollama_error
from sllm.gateway.streams import NDJSON, Stream, any_set, line, unless_gone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sllm.library.model import Progress
    from sllm.library.models import Library

PULLS_MAX = 4
_RETRY_AFTER_S = 30.0

routes = APIRouter(responses=failing(Failed))
_places = threading.BoundedSemaphore(PULLS_MAX)


class PullBody(Named):
    """POST /api/pull."""

    stream: bool = True


class _Pull:
    """A pull in a thread of its own; only its newest progress waits to be told."""

    def __init__(self, library: Library, name: str) -> None:
        self._library = library
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._waiting: dict[tuple[str, str | None], Progress] = {}
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._error: Exception | None = None
        self._ended = False

    def start(self) -> None:
        """Begin. Raises QueueFullError if too many run."""
        if not _places.acquire(blocking=False):
            raise QueueFullError(
                f"{PULLS_MAX} models are being pulled already; try again when one has come",
                retry_after_s=_RETRY_AFTER_S,
            )
        threading.Thread(target=self._run, name="pull", daemon=True).start()

    def give_up(self) -> None:
        """End it at its next progress; what has come is kept for the next time."""
        self._given_up.set()

    async def progress(self, ending: asyncio.Event) -> AsyncGenerator[Progress]:
        """Yield how far it is; raise what ended it, or that the server is `ending`."""
        ended = False
        while not ended:
            await any_set(self._news, ending)
            if ending.is_set():
                raise EngineClosedError("the server is ending; what has come is kept: pull again")
            self._news.clear()
            ended = self._ended
            with self._lock:
                steps, self._waiting = list(self._waiting.values()), {}
            for step in steps:
                yield step
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._library.pull(self._name, self._note)
        except Exception as error:  # noqa: BLE001 - whoever waits for it raises it.
            self._error = error
        finally:
            _places.release()
            self._ended = True
            self._wake()

    def _note(self, progress: Progress) -> None:
        if self._given_up.is_set():
            raise EngineClosedError("the client has gone")
        with self._lock:
            self._waiting[progress.status, progress.digest] = progress
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)


@routes.post("/api/pull", responses=answering(Status, stream=NDJSON))
async def pull(body: PullBody, request: Request, here: Here) -> Response:
    """Fetch a model."""
    pulling = _Pull(here.library, body.model)
    pulling.start()
    if body.stream:
        lines = _lines(pulling, here.host.ending)
        return Stream(lines, media_type=NDJSON, close=pulling.give_up)
    try:
        await unless_gone(request, _wait(pulling, here.host.ending))
    finally:
        pulling.give_up()
    return JSONResponse({"status": "success"})


async def _wait(pulling: _Pull, ending: asyncio.Event) -> None:
    async for _ in pulling.progress(ending):
        pass


async def _lines(pulling: _Pull, ending: asyncio.Event) -> AsyncGenerator[str]:
    try:
        async for progress in pulling.progress(ending):
            told: dict[str, Any] = {
                "status": progress.status,
                "digest": progress.digest,
                "total": progress.total,
                "completed": progress.completed,
            }
            yield line({name: value for name, value in told.items() if value is not None})
    except Exception as error:  # noqa: BLE001 - the edge that translates
        yield line(ollama_error(describe(error)))
