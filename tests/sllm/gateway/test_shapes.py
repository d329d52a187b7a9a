"""The shapes on the wire: what each route answers, field by field, against tests/golden/gateway.

In the golden files times and what is random have their type alone. They change by hand, in the
commit that changes a shape.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sllm.gateway.scripted import ids_of

if TYPE_CHECKING:
    import httpx

    from tests.sllm.gateway.scripted import Script

GOLDEN = Path(__file__).parents[2] / "golden" / "gateway"
VARYING = re.compile(r"created(_at)?|modified_at|expires_at|.*_duration|digest")
RANDOM = re.compile(r"(?<=_|-)[0-9a-f]{24}$")

SAID: dict[str, Any] = {"model": "able", "messages": [{"role": "user", "content": "Hi"}]}
PROMPTED: dict[str, Any] = {"model": "plain", "prompt": "Hi"}
ASKED: dict[str, Any] = {"model": "able", "input": "Hi"}
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOL = {"type": "function", "function": WEATHER}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Berne"}}\n</tool_call>'
ONE = {"num_predict": 1}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
USAGE = {"stream_options": {"include_usage": True}}

# By golden file: a path, and by case a body and what the model says to it. A body that streams is
# told in two steps, the answer and then its end, so that nobody's speed decides where it is cut.
ANSWERS: dict[str, tuple[str, dict[str, tuple[dict[str, Any], str]]]] = {
    "ollama-generate": (
        "/api/generate",
        {
            "whole": (PROMPTED | {"stream": False}, "Y"),
            "stream": (PROMPTED, "Y"),
            "length": (PROMPTED | {"stream": False, "options": ONE}, "Yes"),
            "load": ({"model": "plain", "stream": False}, ""),
        },
    ),
    "ollama-chat": (
        "/api/chat",
        {
            "whole": (SAID | {"stream": False}, "Y"),
            "stream": (SAID, "Y"),
            "call": (SAID | {"stream": False, "tools": [TOOL]}, CALL),
            "streamed call": (SAID | {"tools": [TOOL]}, CALL),
            "thought": (SAID | {"stream": False}, "<think>\nHm.\n</think>\n\nY"),
            "logprobs": (SAID | {"stream": False, "logprobs": True, "top_logprobs": 1}, "Y"),
        },
    ),
    "openai-chat": (
        "/v1/chat/completions",
        {
            "whole": (SAID, "Y"),
            "stream": (SAID | {"stream": True} | USAGE, "Y"),
            "call": (SAID | {"tools": [TOOL]}, CALL),
            "streamed call": (SAID | {"stream": True, "tools": [TOOL]}, CALL),
            "thought": (SAID, "<think>\nHm.\n</think>\n\nY"),
            "length": (SAID | {"max_tokens": 1}, "Yes"),
            "logprobs": (SAID | {"logprobs": True, "top_logprobs": 1}, "Y"),
        },
    ),
    "openai-completions": (
        "/v1/completions",
        {
            "whole": (PROMPTED, "Y"),
            "stream": (PROMPTED | {"stream": True} | USAGE, "Y"),
            "logprobs": (PROMPTED | {"logprobs": 1}, "Y"),
            "echo": (PROMPTED | {"logprobs": 1, "echo": True}, "Y"),
        },
    ),
    "openai-responses": (
        "/v1/responses",
        {
            "whole": (ASKED, "Y"),
            "stream": (ASKED | {"stream": True}, "Y"),
            "call": (ASKED | {"tools": [{"type": "function", **WEATHER}]}, CALL),
            "streamed call": (
                ASKED | {"stream": True, "tools": [{"type": "function", **WEATHER}]},
                CALL,
            ),
            "thought": (ASKED, "<think>\nHm.\n</think>\n\nY"),
            "length": (ASKED | {"max_output_tokens": 1}, "Yes"),
            "logprobs": (ASKED | LOGPROBS, "<think>\nHm.\n</think>\n\nY"),
            "streamed logprobs": (ASKED | LOGPROBS | {"stream": True}, "Y"),
        },
    ),
}

# By golden file: a path, and by case a body. Answers fail once they have begun.
ERRORS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "ollama-errors": {
        "a missing field": ("/api/chat", {"messages": []}),
        "an unknown model": ("/api/chat", SAID | {"model": "plane"}),
        "a full queue": ("/api/chat", SAID),
        "an unknown path": ("/api/nothing", {}),
        "in an answer": ("/api/chat", SAID | {"stream": False}),
        "in a stream": ("/api/chat", SAID),
    },
    "openai-errors": {
        "a missing field": ("/v1/chat/completions", {"model": "plain"}),
        "a wrong value": ("/v1/chat/completions", SAID | {"temperature": 3}),
        "an unknown model": ("/v1/chat/completions", SAID | {"model": "plane"}),
        "a full queue": ("/v1/chat/completions", SAID),
        "an unknown path": ("/v1/nothing", {}),
        "an earlier response": ("/v1/responses", ASKED | {"previous_response_id": "resp_1"}),
        "in an answer": ("/v1/chat/completions", SAID),
        "in a stream": ("/v1/chat/completions", SAID | {"stream": True}),
        "in a streamed response": ("/v1/responses", ASKED | {"stream": True}),
    },
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, (_, cases) in ANSWERS.items() for case in cases]
)
def test_an_answer_has_the_golden_shape(
    http: httpx.Client, script: Script, name: str, case: str
) -> None:
    path, cases = ANSWERS[name]
    body, script.answer = cases[case]
    if body.get("stream", path.startswith("/api/")):
        script.free_tokens = len(ids_of(script.answer))
    lines = []
    with http.stream("POST", path, json=body) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if "Y" in line or "Berne" in line:
                script.go.set()
    assert_golden(name, case, told(answer, "\n".join(lines)))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("ollama-tags", ("GET", "/api/tags", None)),
        ("ollama-ps", ("GET", "/api/ps", None)),
        ("ollama-show", ("POST", "/api/show", {"model": "able"})),
        ("ollama-embed", ("POST", "/api/embed", {"model": "plain", "input": ["abc", "ab"]})),
        ("ollama-embeddings", ("POST", "/api/embeddings", PROMPTED)),
        ("openai-models", ("GET", "/v1/models", None)),
        ("openai-model", ("GET", "/v1/models/plain", None)),
        ("openai-embeddings", ("POST", "/v1/embeddings", {"model": "plain", "input": "abc"})),
    ],
)
def test_what_is_told_of_models_has_the_golden_shape(
    http: httpx.Client, models: Path, name: str, asked: tuple[str, str, Any]
) -> None:
    method, path, body = asked
    http.post("/api/generate", json={"model": "plain"})
    answer = http.request(method, path, json=body)
    assert_golden(name, "whole", told(answer, answer.text.replace(str(models), "<models>")))


@pytest.mark.parametrize(
    ("name", "case"), [(n, case) for n, cases in ERRORS.items() for case in cases]
)
def test_an_error_has_the_golden_shape(
    http: httpx.Client, script: Script, name: str, case: str
) -> None:
    path, body = ERRORS[name][case]
    script.full = case == "a full queue"
    script.answer, script.error = "", MemoryError("no more room")
    answer = http.post(path, json=body)
    assert_golden(name, case, told(answer, answer.text))


def is_streamed(answer: httpx.Response) -> bool:
    """Return whether an answer comes in lines."""
    return answer.headers["content-type"].split(";")[0] != "application/json"


def told(answer: httpx.Response, text: str) -> dict[str, Any]:
    """Return an answer, without what varies."""
    shape: dict[str, Any] = {
        "status": answer.status_code,
        "content_type": answer.headers["content-type"],
    }
    if "retry-after" in answer.headers:
        shape["retry_after"] = answer.headers["retry-after"]
    if not is_streamed(answer):
        return shape | {"body": steady(json.loads(text))}
    return shape | {"lines": [read(line) for line in text.split("\n") if line]}


def read(line: str) -> Any:
    """Return a line of NDJSON, or of server-sent events."""
    if line.startswith("event: ") or line == "data: [DONE]":
        return line
    value = steady(json.loads(line.removeprefix("data: ")))
    return {"data": value} if line.startswith("data: ") else value


def steady(value: Any) -> Any:
    """Return a value with types for times and digests, and without the random end of ids."""
    if isinstance(value, dict):
        return {
            key: f"<{type(one).__name__}>" if VARYING.fullmatch(key) else steady(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [steady(one) for one in value]
    return RANDOM.sub("<random>", value) if isinstance(value, str) else value


def assert_golden(name: str, case: str, shape: dict[str, Any]) -> None:
    """Compare exactly, the order of fields included."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())[case]
    assert json.dumps(shape, indent=1) == json.dumps(golden, indent=1)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/api/chat", SAID, "options"),
        ("/api/generate", PROMPTED, "options"),
        ("/v1/chat/completions", SAID | USAGE, "max_tokens"),
        ("/v1/completions", PROMPTED | USAGE, "max_tokens"),
        ("/v1/responses", ASKED, "max_output_tokens"),
    ],
)
def test_a_stream_that_ends_by_its_length_has_its_last_token_and_its_counts(
    http: httpx.Client, path: str, body: dict[str, Any], *, limit: str, tokens: int
) -> None:
    most = {"num_predict": tokens} if limit == "options" else tokens
    answer = http.post(path, json=body | {"stream": True, limit: most})
    texts = re.findall(r'"(?:content|response|text|delta)":"([^"]*)"', answer.text)
    said = "".join(texts)
    assert "Hello there."[:tokens] in said
    assert "Hello there."[: tokens + 1] not in said
    counts = re.findall(r'"(?:eval_count|completion_tokens|output_tokens)":(\d+)', answer.text)
    assert int(counts[-1]) == tokens
    assert re.search(r'"(?:done_reason|finish_reason)":"length"|"max_output_tokens"}', answer.text)
