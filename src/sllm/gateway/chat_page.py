"""The page at /: a chat in the browser, out of three files and this server's own API."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import PlainTextResponse, Response

PAGE_PREFIX = "/page/"
GREETING = "Ollama is running"
_TYPES = {"style.css": "text/css", "chat.js": "text/javascript"}
_NOT_FOUND = 404
# Nothing from elsewhere, nothing inline, and nobody may frame it: an answer that is shown as it
# should not be still cannot run, or send anything anywhere.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}

routes = APIRouter()


@routes.head("/", include_in_schema=False)
@routes.get("/", include_in_schema=False)
async def greet(accept: Annotated[str, Header()] = "") -> Response:
    """Return the page to a browser, and to others the words that Ollama's clients look for."""
    if "text/html" in accept:
        return Response(_read("index.html"), media_type="text/html", headers=_HEADERS)
    return PlainTextResponse(GREETING, headers={"Vary": "Accept"})


@routes.get(PAGE_PREFIX + "{name}", include_in_schema=False)
async def send_part(name: str) -> Response:
    """Return what the page consists of besides itself."""
    if name not in _TYPES:
        return PlainTextResponse(f"the page has no {name}", status_code=_NOT_FOUND)
    return Response(_read(name), media_type=_TYPES[name], headers=_HEADERS)


def _read(name: str) -> bytes:
    return (files("sllm.gateway") / "page" / name).read_bytes()
