"""ServerClient: Ollama's API as the commands use it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from sllm.core.errors import ModelNotFoundError, ServerError, SettingsError
from sllm.gateway.settings import is_token

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
    """A connection to a server. Close it, or use it as a context.

    Raises SettingsError for a token, and ServerError for an address, that are none.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        if token and not is_token(token):
            raise SettingsError(
                "GDSLLM_API_TOKEN is empty or not plain ASCII, and no HTTP header can carry it: "
                "set it to the server's"
            )
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=False
            )
        except httpx.InvalidURL as error:
            raise ServerError(
                f"{url} is not the address of a server: give --host, LLM_SERVER_URL or OLLAMA_HOST "
                "a host and a port, as http://HOST:PORT"
            ) from error

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
            response = self._http.request(method, path, json=_in_whole_characters(body))
            _require_success(response)
            found = response.json() if response.content else {}
        return found if isinstance(found, dict) else {}

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the JSON objects of an answer as they come. Closing ends the server's work."""
        sent = _in_whole_characters(body)
        with self._failures(), self._http.stream("POST", path, json=sent) as response:
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


def _in_whole_characters(value: Any) -> Any:
    """Return what is sent, with a mark for each byte of a terminal's or a file's that is no text.

    Python has such bytes in texts as halves of characters, which no JSON can have.
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {key: _in_whole_characters(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_whole_characters(inner) for inner in value]
    return value


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
