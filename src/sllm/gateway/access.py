"""Who may use the server: a bearer token, names of this host, and pages of known origins.

On loopback a page from elsewhere could still reach the server through the reader's own browser,
by a name that it makes resolve to 127.0.0.1, or by requests that need no preflight. So names other
than this machine's, and origins that nobody allowed, are refused.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from sllm.gateway.chat_page import PAGE_PREFIX
from sllm.gateway.failures import Failure
from sllm.gateway.settings import is_loopback
from sllm.gateway.shapes import respond

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from sllm.gateway.settings import Settings

OPEN_PATHS = frozenset({"/", "/health"})
BODY_BYTES_MAX = 32 << 20
TOO_LARGE = 413
_FORBIDDEN, _UNAUTHENTICATED = 403, 401
_TOO_LARGE_TOLD = f"the request is larger than {BODY_BYTES_MAX >> 20} MB"
_BLOBS = "/api/blobs/"


class Guard:
    """Refuses requests before any route sees them."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap an application."""
        self._app = app
        self._settings = settings
        self._token = (settings.token or "").encode()
        self._origins = re.compile(settings.origin_pattern)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        failure = self._refusal(scope, Headers(scope=scope))
        if failure is not None:
            await _refuse(failure, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Failure | None:
        host = headers.get("host", "")
        if self._settings.is_loopback and not is_loopback(_name_of(host)):
            return Failure(
                status=_FORBIDDEN,
                kind="HostError",
                message=f"this server is for this machine, and was called {_name_of(host)!r}; use "
                "localhost, or serve on an address with a token",
            )
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, host):
            return Failure(
                status=_FORBIDDEN,
                kind="OriginError",
                message=f"pages of {origin} may not use this server; if they may, serve with "
                f"--origins {origin}",
            )
        if self._lets_in(scope, headers):
            return None
        return Failure(
            status=_UNAUTHENTICATED,
            kind="UnauthenticatedError",
            message="the token is missing or wrong: send `Authorization: Bearer …` with the "
            "server's GDSLLM_API_TOKEN",
        )

    def _allows(self, origin: str, host: str) -> bool:
        return self._origins.fullmatch(origin) is not None or urlsplit(origin).netloc == host

    def _lets_in(self, scope: Scope, headers: Headers) -> bool:
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(PAGE_PREFIX)
        if not self._token or is_open or scope["method"] == "OPTIONS":
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        token = given.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(token, self._token)


class JsonBodies:
    """Takes every body for JSON, as both servers do, and none that is larger than it may be.

    `curl -d` sends a form's content type, and so do clients of the first hour.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its content type set right."""
        if scope["type"] != "http" or scope["path"].startswith(_BLOBS):
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > BODY_BYTES_MAX:
            failure = Failure(status=TOO_LARGE, kind="BodyError", message=_TOO_LARGE_TOLD)
            await _refuse(failure, scope, receive, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*kept, (b"content-type", b"application/json")]
        await self._app(scope, _limited(receive), send)


def _limited(receive: Receive) -> Receive:
    """Return `receive`, but a body without a length is refused where it is too long."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES_MAX:
            raise HTTPException(TOO_LARGE, _TOO_LARGE_TOLD)
        return message

    return limited


async def _refuse(failure: Failure, scope: Scope, receive: Receive, send: Send) -> None:
    await respond(failure, path=scope["path"])(scope, receive, send)


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
