"""What the OpenAPI schema says of answers is what the golden files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sllm.gateway.app import create_app
from sllm.gateway.ollama import answers as ollama
from sllm.gateway.openai import answers as openai
from tests.sllm.gateway.test_shapes import GOLDEN

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sllm.gateway.settings import Settings
    from sllm.library.models import Library

SHAPES: dict[str, type[BaseModel]] = {
    "ollama-chat": ollama.Chatted,
    "ollama-embed": ollama.Vectors,
    "ollama-embeddings": ollama.Vector,
    "ollama-errors": ollama.Failed,
    "ollama-generate": ollama.Generated,
    "ollama-ps": ollama.RunningModels,
    "ollama-show": ollama.Shown,
    "ollama-tags": ollama.Tags,
    "openai-chat": openai.ChatCompletion,
    "openai-completions": openai.Completion,
    "openai-embeddings": openai.Embeddings,
    "openai-errors": openai.Failed,
    "openai-model": openai.Model,
    "openai-models": openai.Models,
    "openai-responses": openai.Response,
}


def _whole(value: Any) -> Any:
    """Return a golden value with something in the place of what varies."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return 1 if value == "<int>" else value


def test_every_golden_file_has_a_declared_shape() -> None:
    assert SHAPES.keys() == {path.stem for path in GOLDEN.glob("*.json")}


@pytest.mark.parametrize("name", SHAPES)
def test_a_golden_answer_has_the_declared_fields_and_no_others(name: str) -> None:
    for case in json.loads(Path(GOLDEN / f"{name}.json").read_text()).values():
        if "body" in case:
            SHAPES[name].model_validate(_whole(case["body"]), extra="forbid")
        elif name in {"ollama-chat", "ollama-generate"}:
            for line in case["lines"]:
                SHAPES[name].model_validate(_whole(line), extra="forbid")


def test_every_route_declares_what_it_answers(library: Library, settings: Settings) -> None:
    schema = create_app(library, settings).openapi()
    for path, methods in schema["paths"].items():
        for route in methods.values():
            assert "200" in route["responses"], path
            assert "422" not in route["responses"], f"{path}: a wrong body is answered with 400"
            if path not in {"/health", "/metrics"}:
                assert {"4XX", "5XX"} <= route["responses"].keys(), path
