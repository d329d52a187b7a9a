"""Who may use the server, what it counts, and that it is always there."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sllm.gateway import asking
from sllm.gateway.serve import background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sllm.core.requests import Choice, TokenRequest
    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.models import Library
    from tests.sllm.gateway.scripted import Script

CHAT: dict[str, Any] = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def served(settings: Settings, library: Library, backing: Backing) -> AbstractContextManager[str]:
    """A server for as long as the context is open."""
    return background(settings, library=library, backing=backing)


@pytest.fixture
def serve(
    settings: Settings, library: Library, backing: Backing, script: Script
) -> Iterator[Callable[..., httpx.Client]]:
    """Start servers with other settings; gives clients of them."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> httpx.Client:
            url = stack.enter_context(
                background(replace(settings, **changes), library=library, backing=backing)
            )
            return stack.enter_context(httpx.Client(base_url=url, timeout=20))

        yield start
        script.go.set()


def test_health_and_metrics_tell_of_the_server(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok", "models": []}
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert http.get("/health").json()["models"] == ["plain:latest"]
    metrics = http.get("/metrics").text
    counted = 'gdsllm_requests_total{path="/v1/chat/completions",status="200"} 1.0'
    assert counted in metrics
    assert 'gdsllm_tokens_total{kind="answer"} 13.0' in metrics
    assert "gdsllm_models 1.0" in metrics
    assert "gdsllm_load_seconds_count 1.0" in metrics


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic secret", "Bearer é"])
def test_without_the_token_nobody_gets_in(
    serve: Callable[..., httpx.Client], given: str | None
) -> None:
    client = serve(token="secret")
    headers = httpx.Headers()
    if given is not None:
        headers = httpx.Headers({b"authorization": given.encode("latin-1")})
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/health", headers=headers).status_code == 200


def test_with_the_token_everything_works(serve: Callable[..., httpx.Client]) -> None:
    client = serve(token="secret")
    headers = {"authorization": "Bearer secret"}
    assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


def test_a_preflight_needs_no_token(serve: Callable[..., httpx.Client]) -> None:
    client = serve(token="secret", origins=("https://app.example",))
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    answer = client.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    refused = client.post("/v1/chat/completions", json=CHAT, headers=preflight)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"


def test_names_that_are_not_this_machines_are_refused(http: httpx.Client) -> None:
    assert http.get("/health", headers={"host": "evil.example:8000"}).status_code == 403
    assert http.get("/health", headers={"host": "localhost:8000"}).status_code == 200


def test_pages_from_elsewhere_are_refused_unless_allowed(
    http: httpx.Client, serve: Callable[..., httpx.Client]
) -> None:
    origin = {"origin": "https://evil.example"}
    assert http.post("/v1/chat/completions", json=CHAT, headers=origin).status_code == 403
    own = {"origin": f"http://{http.base_url.host}:{http.base_url.port}"}
    assert http.post("/v1/chat/completions", json=CHAT, headers=own).status_code == 200
    client = serve(origins=("https://evil.example",))
    assert client.post("/v1/chat/completions", json=CHAT, headers=origin).status_code == 200
    told = http.post("/api/chat", json=CHAT, headers=origin).json()["error"]
    assert "serve with --origins https://evil.example" in told


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:5173", 200),
        ("app://anything", 200),
        ("http://localhost.evil:1", 403),
        ("https://localhost:5173", 403),
        ("http://localhostx5173", 403),
        ("null", 403),
    ],
)
def test_origins_may_be_patterns(
    serve: Callable[..., httpx.Client], origin: str, status: int
) -> None:
    client = serve(origins=("http://localhost:*", "app://*"))
    answer = client.get("/api/version", headers={"origin": origin})
    assert answer.status_code == status
    assert (answer.headers.get("access-control-allow-origin") == origin) is (status == 200)


def test_any_content_type_is_json(http: httpx.Client) -> None:
    body = b'{"model":"plain","messages":[{"role":"user","content":"Hi"}]}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused(http: httpx.Client) -> None:
    body = b" " * (33 << 20)
    assert http.post("/v1/chat/completions", content=body).status_code == 413


def test_a_body_without_a_length_that_is_too_large_is_refused(http: httpx.Client) -> None:
    pieces = (b" " * (1 << 20) for _ in range(40))
    answer = http.post("/v1/chat/completions", content=pieces)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the request is larger than 32 MB"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/chat", {"model": "plain", "format": 5}, "format: Input should be '' or 'json', or "),
        ("/api/chat", {"model": "plain", "messages": [{}]}, "messages.0.role is required"),
        ("/api/embed", {"model": "plain", "input": 5}, "input: Input should be a valid string, or"),
        ("/api/show", {"name": 5}, "model: Input should be a valid string"),
        ("/api/show", [], "the body: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_with_a_field_is_told_by_its_own_name(
    http: httpx.Client, path: str, body: Any, told: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(told)


def test_an_unknown_path_is_not_found_in_the_apis_shape(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert "error" in http.get("/api/nothing").json()
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("path", ["/health", "/api/tags", "/api/ps", "/v1/models", "/metrics"])
def test_the_server_answers_while_it_generates(
    http: httpx.Client, script: Script, path: str
) -> None:
    script.free_tokens = 1
    asked = threading.Thread(target=http.post, args=["/v1/chat/completions"], kwargs={"json": CHAT})
    asked.start()
    while not script.requests:
        pass
    with httpx.Client(base_url=http.base_url, timeout=2) as other:
        waits_s = [other.get(path).elapsed.total_seconds() for _ in range(5)]
    assert statistics.median(waits_s) < 0.5
    assert asked.is_alive()
    script.go.set()
    asked.join()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_engines_work(
    url: str, script: Script, *, stream: bool
) -> None:
    script.free_tokens = 3
    with httpx.Client(base_url=url) as client:
        request = client.build_request(
            "POST", "/v1/chat/completions", json=CHAT | {"stream": stream}, timeout=0.3
        )
        if stream:
            answer = client.send(request, stream=True)
            next(answer.iter_lines())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)
    assert script.opened[0].tickets[0].cancelled.wait(5)


LONG_TOKENS = 50_000


class Paced:
    """An endless answer at a speed that any client keeps up with. made: tokens so far."""

    def __init__(self, script: Script) -> None:
        script.answer = "x" * LONG_TOKENS
        self.made = 0
        self._choices = script.choices

    def __call__(self, request: TokenRequest) -> Iterator[Choice]:
        """Yield the tokens."""
        for choice in self._choices(request):
            self.made += 1
            yield choice
            time.sleep(0.0005)


@contextlib.contextmanager
def unread(url: str, body: dict[str, Any]) -> Iterator[None]:
    """Ask for an answer, and never read it."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(head.encode() + b"\r\n\r\n" + content)
        yield


def test_a_client_that_stops_reading_is_given_up(
    url: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced = Paced(script)
    monkeypatch.setattr(script, "choices", paced)
    monkeypatch.setattr(asking, "WAITING_TOKENS_MAX", 256)
    # Every token is some 2 KB on the wire, so the system's buffers are soon full.
    with unread(url, CHAT | {"stream": True, "logprobs": True, "top_logprobs": 20}):
        while not script.requests:
            time.sleep(0.01)
        assert script.opened[0].tickets[0].cancelled.wait(60)
        assert paced.made < LONG_TOKENS / 2
        monkeypatch.undo()
        # It is still there, and keeps the model from nobody.
        script.answer = "Hello there."
        other = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"model": "able"}, timeout=20)
        assert other.status_code == 200
        assert script.opened[0].closed.is_set()


def test_a_client_that_does_not_read_a_whole_answer_keeps_no_model(
    url: str, script: Script
) -> None:
    script.answer = "x" * 4000
    with unread(url, CHAT | {"stream": True, "logprobs": True, "top_logprobs": 20}):
        while not script.requests:
            time.sleep(0.01)
        script.answer = "Hello there."
        other = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"model": "able"}, timeout=20)
        assert other.status_code == 200


def test_a_client_that_reads_is_never_given_up(
    http: httpx.Client, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "choices", Paced(script))
    monkeypatch.setattr(asking, "WAITING_TOKENS_MAX", 1000)
    script.answer = "x" * 2000
    answer = http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_model_can_be_loaded_at_the_start(
    serve: Callable[..., httpx.Client], script: Script
) -> None:
    client = serve(preload=("plain",))
    while client.get("/health").json()["models"] != ["plain:latest"]:
        pass
    assert len(script.opened) == 1


def test_a_model_that_cannot_be_loaded_at_the_start_is_told_with_the_reason(
    serve: Callable[..., httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    client = serve(preload=("gone",))
    while not caplog.records:
        assert client.get("/health").status_code == 200
    assert "gone is not loaded from the start: no model 'gone'" in caplog.text


def test_what_keeps_a_model_from_the_start_is_logged_once(
    serve: Callable[..., httpx.Client],
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(library, "get", refuse)
    client = serve(preload=("plain",))
    while "not loaded from the start" not in caplog.text:
        assert client.get("/health").status_code == 200
    assert "request crashed" not in caplog.text


@pytest.mark.parametrize(
    ("path", "stream"),
    [("/v1/chat/completions", True), ("/api/chat", True), ("/api/chat", False)],
)
def test_the_end_of_the_server_ends_running_answers_with_an_error(
    served: AbstractContextManager[str],
    script: Script,
    caplog: pytest.LogCaptureFixture,
    path: str,
    *,
    stream: bool,
) -> None:
    script.free_tokens = 1
    with httpx.Client(timeout=20) as client, ThreadPoolExecutor(1) as thread:
        with served as url:
            asked = thread.submit(client.post, f"{url}{path}", json=CHAT | {"stream": stream})
            while not script.requests:
                time.sleep(0.01)
        answer = asked.result()
    assert "the model was unloaded" in answer.text.strip().splitlines()[-1]
    assert answer.status_code == (200 if stream else 503)
    assert script.opened[0].closed.is_set()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("body", [b'{"model": "\xff"}', b"[" * 100_000])
def test_a_body_that_cannot_be_read_is_told_what_to_send(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/api/generate", content=body)
    assert answer.status_code == 400
    assert "send JSON in UTF-8" in answer.json()["error"]


def test_the_description_of_the_api_names_each_route_once(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    ids = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert len(ids) == len(set(ids))
    assert {"/api/chat", "/v1/chat/completions", "/v1/responses"} <= paths.keys()
