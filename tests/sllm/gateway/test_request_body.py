"""What clients leave out, or write as null, has its default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

HI = {"role": "user", "content": "Hi"}
BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": "plain", "prompt": "Hi", "stream": False},
    "/api/chat": {"model": "plain", "messages": [HI], "stream": False},
    "/api/embed": {"model": "plain", "input": "Hi"},
    "/api/embeddings": {"model": "plain", "prompt": "Hi"},
    "/api/show": {"model": "plain"},
    "/api/create": {"model": "other", "from": "plain"},
    "/v1/chat/completions": {"model": "plain", "messages": [HI]},
    "/v1/completions": {"model": "plain", "prompt": "Hi"},
    "/v1/embeddings": {"model": "plain", "input": "Hi"},
    "/v1/responses": {"model": "plain", "input": "Hi"},
}


@pytest.mark.parametrize("path", BODIES)
def test_a_field_that_is_null_is_as_good_as_none(http: httpx.Client, path: str) -> None:
    schema = http.get("/openapi.json").json()
    content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    fields = schema["components"]["schemas"][name]["properties"]
    answer = http.post(path, json=dict.fromkeys(fields) | BODIES[path])
    assert answer.status_code == 200, answer.text
    assert http.post(path, json=BODIES[path] | {"stream": None}).status_code == 200


def test_nulls_within_a_field_are_as_good_as_nothing(http: httpx.Client) -> None:
    more = {"stream_options": {"include_usage": None}, "tools": None}
    body = BODIES["/v1/chat/completions"] | more | {"messages": [HI | {"tool_calls": None}]}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    items = [{"type": None, "role": "user", "content": "Hi"}]
    body = BODIES["/v1/responses"] | {"input": items, "text": {"format": None}}
    assert http.post("/v1/responses", json=body).status_code == 200


def test_a_null_in_the_place_of_what_is_needed_is_told_so(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "plain", "prompt": None})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt is required"
