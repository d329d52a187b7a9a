"""Find the server that a command talks to, or start one for as long as the command runs."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sllm.cli.options import open_library
from sllm.cli.server_record import find_servers
from sllm.core.errors import ServerError, ServingError
from sllm.library.places import model_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sllm.cli.server_client import ServerClient
    from sllm.library.models import Library

TOKEN_VARIABLE = "GDSLLM_API_TOKEN"
_URL_VARIABLES = ("LLM_SERVER_URL", "OLLAMA_HOST")
_OLLAMA_PORT = 11434
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]*)(:[0-9]{1,5})?(/\S*)?")
# How a client on this machine calls what listens everywhere, or is not said.
_OWN_NAMES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def named_url(given: str | None) -> str | None:
    """Return the server that a person named, by option or variable; None if nobody did.

    Raises ServerError for what is no address.
    """
    found = given or next((os.environ[name] for name in _URL_VARIABLES if os.environ.get(name)), "")
    if not found:
        return None
    scheme, _, address = found.rpartition("://")
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"  # IPv6, without a port.
    matched = _ADDRESS.fullmatch(address)
    if matched is None:
        raise ServerError(f"{found!r} is not the address of a server: write http://host:port")
    host, port, path = matched.groups("")
    port = port if port or scheme else f":{_OLLAMA_PORT}"
    return f"{scheme or 'http'}://{_OWN_NAMES.get(host, host)}{port}{path}"


@contextmanager
def running_server(given: str | None) -> Iterator[ServerClient]:
    """Yield a client of the server that was named, or that runs here. Raises ServerError."""
    from sllm.cli.server_client import ServerClient

    url = named_url(given)
    if url is None:
        records = find_servers(os.environ)
        if not records:
            raise ServerError("no server runs here: start one with `gdsllm serve`")
        url = records[-1].url
    with ServerClient(url, os.environ.get(TOKEN_VARIABLE)) as client:
        yield client


@contextmanager
def any_server(
    given: str | None, root: Path | None, *, model: str | None = None
) -> Iterator[ServerClient]:
    """Yield a client of a server: the one named, one that serves the root, or one of our own.

    One of our own lives in this process, on a free port of loopback, for as long as the context.
    model: what it will be asked for; it begins to open that before all else.
    """
    from sllm.cli.server_client import ServerClient

    token = os.environ.get(TOKEN_VARIABLE)
    url = named_url(given)
    top = (root or model_root(os.environ)).expanduser().absolute()
    with ExitStack() as stack:
        if url is None:
            url = _serving(str(top), token)
        if url is None:
            from sllm.gateway.backing import open_ahead
            from sllm.gateway.settings import Settings

            token = secrets.token_urlsafe(16)
            settings = Settings(model_root=top, port=0, token=token, keep_alive_s=-1)
            library = open_library(top)
            path = checkpoint_of(library, model) if model else None
            backing = stack.enter_context(open_ahead(settings, path))

            from sllm.gateway.serve import background

            url = stack.enter_context(background(settings, library=library, backing=backing))
        yield stack.enter_context(ServerClient(url, token))


def checkpoint_of(library: Library, model: str) -> Path | None:
    """Return where a model's checkpoint is; None if it cannot be had now."""
    try:
        found = library.get(model)
    except ServingError:
        return None  # The server says what is wrong when it is asked.
    return found.path if found.problem is None else None


def _serving(root: str, token: str | None) -> str | None:
    from sllm.cli.server_client import ServerClient

    for record in find_servers(os.environ):
        if record.root == root:
            with ServerClient(record.url, token) as client:
                if client.answers():
                    return record.url
    return None
