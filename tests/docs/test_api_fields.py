"""docs/api-fields.md against the OpenAPI schema, which tests of the gateway hold to its answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sllm.gateway.app import create_app
from sllm.gateway.serve import background
from sllm.gateway.settings import Settings
from sllm.library.models import Library
from tests.docs.documents import DOCS, code_cell, table_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE = DOCS / "api-fields.md"
SECTIONS = dict(re.findall(r"^### (\S+ \S+)\n(.*?)(?=^#|\Z)", PAGE.read_text(), re.M | re.S))
JSON = "application/json"

# A request that has all it needs, and for each field that is refused a value that would mean
# something. What is refused is refused before anybody looks for the model.
WHOLE: dict[str, dict[str, Any]] = {
    "POST /api/generate": {"prompt": "Hi"},
    "POST /api/chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "POST /api/create": {"from": "other"},
    "POST /v1/completions": {"prompt": "Hi"},
    "POST /v1/responses": {"input": "Hi"},
}
REFUSED: dict[str, Any] = {
    "images": ["aGk="],
    "messages.images": [{"role": "user", "content": "Hi", "images": ["aGk="]}],
    "files": {"a.gguf": "sha256:0"},
    "adapters": {"a.gguf": "sha256:0"},
    "quantize": "q4_K_M",
    "echo": True,
    "best_of": 2,
    "background": True,
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server says of itself."""
    root = tmp_path_factory.mktemp("models")
    return create_app(Library(root), Settings(model_root=root)).openapi()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server without a model."""
    root = tmp_path_factory.mktemp("models")
    with (
        background(Settings(model_root=root, port=0, grace_s=0)) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


def _fields(schema: Mapping[str, Any], node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of fields below a node, those within others after a dot."""
    if "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
    for branch in (*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items", {})):
        if branch:
            yield from _fields(schema, branch, prefix)
    for name, value in node.get("properties", {}).items():
        yield prefix + name
        yield from _fields(schema, value, f"{prefix}{name}.")


def _content(schema: Mapping[str, Any], route: str, *, asked: bool) -> set[str]:
    method, path = route.split()
    told = schema["paths"][path][method.lower()]
    holder = told.get("requestBody", {}) if asked else told["responses"]["200"]
    return set(_fields(schema, holder.get("content", {}).get(JSON, {}).get("schema", {})))


def _rows(route: str) -> dict[str, str]:
    """Return what is said of each field of a request."""
    if "| --- |" not in SECTIONS[route]:
        return {}
    rows = table_rows(PAGE, f"### {route}")[1:]
    found = {code_cell(row[0]): row[1] for row in rows}
    assert len(found) == len(rows), f"{route}: a field is there twice"
    return found


def test_every_route_has_its_section(schema: dict[str, Any]) -> None:
    routes = {
        f"{method.upper()} {path}"
        for path, methods in schema["paths"].items()
        for method in methods
        if path.startswith(("/api/", "/v1/"))
    }
    assert SECTIONS.keys() == routes


@pytest.mark.parametrize("route", SECTIONS)
def test_every_field_of_a_request_is_told(schema: dict[str, Any], route: str) -> None:
    rows = _rows(route)
    assert set(rows.values()) <= {"yes", "refused", "ignored"}
    known = {field for field, taken in rows.items() if taken != "ignored"}
    assert known == _content(schema, route, asked=True)


@pytest.mark.parametrize("route", SECTIONS)
def test_every_field_of_an_answer_is_told(schema: dict[str, Any], route: str) -> None:
    told = re.search(r"^Answers: (.*?)\.\n", SECTIONS[route], re.M | re.S)
    fields = set(re.findall(r"`([^`]+)`", told[1])) if told else set()
    assert fields == _content(schema, route, asked=False)


@pytest.mark.parametrize(
    ("route", "field"),
    [
        (route, field)
        for route in WHOLE
        for field, taken in _rows(route).items()
        if taken == "refused"
    ],
)
def test_what_is_refused_is_refused(http: httpx.Client, route: str, field: str) -> None:
    path, name = route.split()[1], field.partition(".")[0]
    answer = http.post(path, json={"model": "m", **WHOLE[route], name: REFUSED[field]})
    assert answer.status_code == 400, answer.text
    assert field.rpartition(".")[2] in answer.text
    assert "not" in answer.text
