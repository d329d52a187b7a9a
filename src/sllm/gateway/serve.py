"""Run a server: in this process until it is told to stop, or in a thread beside its user."""

from __future__ import annotations

import contextlib
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

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings

_START_S = 30.0
_STOP_S = 60.0


def serve(settings: Settings, bound: socket.socket, *, library: Library, backing: Backing) -> None:
    """Serve on a socket until SIGINT or SIGTERM; running answers get `grace_s` to end."""
    uvicorn.Server(_config(settings, library, backing)).run(sockets=[bound])


@contextlib.contextmanager
def background(
    settings: Settings, *, library: Library | None = None, backing: Backing | None = None
) -> Iterator[str]:
    """Serve in a thread; yields the URL. Port 0 takes a free one."""
    library = library or Library(settings.model_root)
    with contextlib.closing(listen(settings)) as bound:
        server = _Announced(_config(settings, library, backing))
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


class _Announced(uvicorn.Server):
    """A server that tells when it has started, or failed to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.settled.set()


def _config(settings: Settings, library: Library, backing: Backing | None) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(library, settings, backing),
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(round(settings.grace_s), 0),
    )
