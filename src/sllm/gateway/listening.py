"""The socket of a server, bound before anything that takes long is begun."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from sllm.core.errors import SettingsError

if TYPE_CHECKING:
    from sllm.gateway.settings import Settings

_BACKLOG = 2048


def listen(settings: Settings) -> socket.socket:
    """Return a socket that clients can connect to; its owner closes it.

    Raises SettingsError if the address cannot be had.
    """
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
