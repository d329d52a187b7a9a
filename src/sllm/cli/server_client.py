"""ServerClient: Ollama's API as the commands use it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from sllm.core.errors import ModelNotFoundError, ServerError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 3600.0  # A load of a large model from a slow disk is silent for long.
_NOT_FOUND = 404
_NOWHERE = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
)


class ServerClient:
    """A connection to a server. Close it, or use it as a context."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=False
        )

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def answers(self) -> bool:
        """Return whether a server is there."""
        try:
            return self._http.get("/api/version", timeout=CONNECT_TIMEOUT_S).is_success
        except httpx.HTTPError:
            return False

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object that a request is answered with.

        Raises ModelNotFoundError for 404, ServerError for any other failure.
        """
        with self._failures():
            response = self._http.request(method, path, json=body)
            _require_success(response)
            found = response.json() if response.content else {}
        return found if isinstance(found, dict) else {}

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the JSON objects of an answer as they come. Closing ends the server's work."""
        with self._failures(), self._http.stream("POST", path, json=body) as response:
            if not response.is_success:
                response.read()
            _require_success(response)
            for line in response.iter_lines():
                if line.strip():
                    found = json.loads(line)
                    if "error" in found:
                        raise ServerError(str(found["error"]))
                    yield found

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except _NOWHERE as error:
            raise ServerError(
                f"no server answers at {self.url}: start one with `gdsllm serve`, or name another "
                "with --host, LLM_SERVER_URL or OLLAMA_HOST"
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            if isinstance(error, ServerError | ModelNotFoundError):
                raise
            raise ServerError(f"the server at {self.url} broke off: {error}") from error


def _require_success(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code} {response.reason_phrase}"
    if response.status_code == _NOT_FOUND:
        raise ModelNotFoundError(message)
    raise ServerError(message)
