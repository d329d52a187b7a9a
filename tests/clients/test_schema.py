"""schemathesis: requests at random, as the OpenAPI schema allows them, to a model that computes.

Whatever is asked, the answer has a declared status and shape, and no request is a server's error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

if TYPE_CHECKING:
    from tests.clients.conftest import Served

pytestmark = pytest.mark.clients
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.response_schema_conformance,
]
ANSWER_TOKENS = 4
EXAMPLES = 60
SEVERAL = 2
ASKED = (
    "GET /health",
    "GET /metrics",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/responses",
    "POST /api/generate",
    "POST /api/chat",
    "POST /api/embed",
    "POST /api/embeddings",
    "GET /api/version",
    "GET /api/tags",
    "GET /api/ps",
    "POST /api/show",
    "POST /api/copy",
    "POST /api/push",
    "POST /api/blobs/{digest}",
)
# Each would do what it says: fetch from a network, or take away what the others ask for.
LEFT_ALONE = {"POST /api/pull", "POST /api/create", "DELETE /api/delete"}
LIMITS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}


@pytest.fixture(scope="module")
def operations(served: Served) -> dict[str, Any]:
    """What can be asked, by method and path."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in found}


def test_every_route_is_asked_or_left_alone(operations: dict[str, Any]) -> None:
    assert operations.keys() == LEFT_ALONE | set(ASKED)


@pytest.mark.parametrize("route", ASKED)
def test_no_request_is_a_server_error(
    operations: dict[str, Any], served: Served, route: str
) -> None:
    @given(case=operations[route].as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = _about_a_model(case.path, case.body, served)
        case.call_and_validate(checks=CHECKS, timeout=60)

    ask()


def _about_a_model(path: str, body: dict[str, Any], served: Served) -> dict[str, Any]:
    """Return a body that names a model which is here, mostly, and asks for little."""
    if isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body = {**body, "model": served.model}
    for name in LIMITS.get(path, ()):
        if body.get(name) is None or isinstance(body[name], int):
            body = {**body, name: ANSWER_TOKENS}
    for name in ("prompt", "input"):
        if isinstance(body.get(name), list):
            body = {**body, name: body[name][:SEVERAL]}
    if isinstance(body.get("n"), int):
        body = {**body, "n": min(body["n"], SEVERAL)}
    options = body.get("options")
    if path in {"/api/generate", "/api/chat"} and (options is None or isinstance(options, dict)):
        body = {**body, "options": {**(options or {}), "num_predict": ANSWER_TOKENS}}
    return body
