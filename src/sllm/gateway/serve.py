"""Run a server: in this process until it is told to stop, or in a thread beside its user."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from sllm.core.errors import SettingsError
from sllm.gateway.app import create_app
from sllm.library.models import Library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings

_START_S = 30.0
_STOP_S = 60.0
_BACKLOG = 2048


def serve(
    settings: Settings,
    *,
    library: Library | None = None,
    backing: Backing | None = None,
    bound_to: Callable[[int], AbstractContextManager[None]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; running answers get `grace_s` to end.

    bound_to: given the port once clients can connect; its context is open while it serves. Raises
    SettingsError if the address cannot be had.
    """
    library = library or Library(settings.model_root)
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(contextlib.closing(_bind(settings)))
        if bound_to is not None:
            stack.enter_context(bound_to(bound.getsockname()[1]))
        _server(settings, library, backing).run(sockets=[bound])


@contextlib.contextmanager
def background(
    settings: Settings, *, library: Library | None = None, backing: Backing | None = None
) -> Iterator[str]:
    """Serve in a thread; yields the URL. Port 0 takes a free one."""
    library = library or Library(settings.model_root)
    with contextlib.closing(_bind(settings)) as bound:
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


def _server(settings: Settings, library: Library, backing: Backing | None) -> uvicorn.Server:
    return uvicorn.Server(_config(settings, library, backing))


def _config(settings: Settings, library: Library, backing: Backing | None) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(library, settings, backing),
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(round(settings.grace_s), 0),
    )


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server(
            (settings.host.strip("[]"), settings.port), family=family, backlog=_BACKLOG
        )
    except OSError as error:
        raise SettingsError(
            f"{settings.host}:{settings.port} cannot be served on: {_reason(error)}; choose "
            "another port, or stop what uses it"
        ) from error


def _reason(error: OSError) -> str:
    """Return the system's words alone; a name that is not found has its own numbers and words."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)
