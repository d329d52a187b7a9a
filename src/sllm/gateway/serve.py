"""Run a server: in this process until it is told to stop, or in a thread beside its user."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from typing import TYPE_CHECKING

import uvicorn

from sllm.core.errors import SettingsError
from sllm.gateway.app import create_app
from sllm.gateway.listening import listen
from sllm.library.models import Library

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from fastapi import FastAPI

    from sllm.gateway.backing import Backing
    from sllm.gateway.service import Service
    from sllm.gateway.settings import Settings

KEEP_CONNECTION_S = 75  # More than clients keep theirs: else one may ask while we close it.
_START_S = 30.0
_STOP_S = 60.0
_LAST_WORDS_S = 3  # For clients to be told that their answers end here.


def serve(settings: Settings, bound: socket.socket, *, library: Library, backing: Backing) -> None:
    """Serve on a socket until SIGINT or SIGTERM; running answers get `grace_s` to end."""
    _Server(create_app(library, settings, backing), settings).run(sockets=[bound])


@contextlib.contextmanager
def background(
    settings: Settings, *, library: Library | None = None, backing: Backing | None = None
) -> Iterator[str]:
    """Serve in a thread; yields the URL. Port 0 takes a free one."""
    library = library or Library(settings.model_root)
    with contextlib.closing(listen(settings)) as bound:
        server = _Server(create_app(library, settings, backing), settings)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [bound]}, name="gateway", daemon=True
        )
        thread.start()
        try:
            if not server.settled.wait(_START_S) or not server.started:
                raise SettingsError(f"the server on {settings.host} did not start; see its log")
            host, port = bound.getsockname()[:2]
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join(_STOP_S)


class _Server(uvicorn.Server):
    """A server that tells when it has started, or failed to; at its end no answer stops in silence.

    uvicorn would wait for the answers that run, and cut their connections. Here they have `grace_s`
    to end by themselves, and then end with an error that their clients can read.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_CONNECTION_S,
                timeout_graceful_shutdown=math.ceil(settings.grace_s) + _LAST_WORDS_S,
            )
        )
        self.settled = threading.Event()
        self._service: Service = app.state.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _end_answers(self) -> None:
        await asyncio.sleep(self._service.settings.grace_s)
        await self._service.host.close()
