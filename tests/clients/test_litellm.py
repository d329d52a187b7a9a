"""`litellm`, which reaches this server by three providers: ollama/, ollama_chat/ and openai/."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import litellm
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.clients.conftest import Served

pytestmark = pytest.mark.clients
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
WEATHER = "What is the weather in Paris?"
PROVIDERS = ["ollama", "ollama_chat", "openai"]
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["name", "inhabitants"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "City", "schema": CITY, "strict": True}}


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """One of them."""
    return str(request.param)


@pytest.fixture
def complete(served: Served, provider: str) -> Callable[..., Any]:
    """Ask by a provider, greedily unless told otherwise."""

    def complete(*messages: Any, model: str = served.model, **options: Any) -> Any:
        asked = [
            {"role": "user", "content": one} if isinstance(one, str) else one for one in messages
        ]
        return litellm.completion(
            f"{provider}/{model}",
            asked,
            **_place(served, provider),
            **{"temperature": 0, "max_tokens": 48, "num_retries": 0, **options},
        )

    return complete


def _place(served: Served, provider: str) -> dict[str, str]:
    if provider == "openai":
        return {"api_base": f"{served.url}/v1", "api_key": "any"}
    return {"api_base": served.url}


def test_a_chat_is_answered_with_its_usage(complete: Callable[..., Any]) -> None:
    answer = complete(QUESTION)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 30
    assert answer.usage.completion_tokens == 8


def test_a_stream_is_the_same_answer_in_pieces(complete: Callable[..., Any]) -> None:
    pieces = list(complete(QUESTION, stream=True, stream_options={"include_usage": True}))
    said = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert len([one for one in said if one]) > 3
    assert "".join(said) == ANSWER
    assert pieces[-1].usage.total_tokens > 38


def test_a_limit_of_tokens_is_kept_and_told(complete: Callable[..., Any], provider: str) -> None:
    answer = complete(QUESTION, max_tokens=3)
    assert answer.choices[0].message.content == "The capital of"
    told = (
        "length" if provider == "openai" else "stop"
    )  # What litellm makes of any end of Ollama's.
    assert answer.choices[0].finish_reason == told


def test_a_text_to_stop_at_is_no_part_of_the_answer(complete: Callable[..., Any]) -> None:
    assert complete(QUESTION, stop=[" Paris"]).choices[0].message.content.strip() == (
        "The capital of France is"
    )


def test_an_answer_is_structured(complete: Callable[..., Any]) -> None:
    asked = "Name the capital of France and its inhabitants."
    answer = complete(asked, response_format=FORMAT, max_tokens=128)
    found = json.loads(answer.choices[0].message.content)
    assert found.keys() == {"name", "inhabitants"}


@pytest.mark.parametrize("provider", ["ollama_chat", "openai"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_told(
    complete: Callable[..., Any], served: Served, weather: dict[str, Any], *, stream: bool
) -> None:
    """The provider ollama/ does not know tools: it has a model write JSON instead."""
    options = {"model": served.caller, "tools": [weather], "stream": stream}
    answer = complete(WEATHER, **options)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    said = answer.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "rainy"}
    told = complete(WEATHER, said, result, model=served.caller, tools=[weather])
    assert told.choices[0].message.content == "It is rainy in Paris."


def test_texts_become_vectors(served: Served) -> None:
    for provider in ("ollama", "openai"):
        found = litellm.embedding(
            f"{provider}/{served.model}", ["a cat", "a kitten"], **_place(served, provider)
        )
        assert [len(one["embedding"]) for one in found.data] == [576, 576]
        assert found.usage.prompt_tokens > 2


def test_text_is_completed(served: Served) -> None:
    found = litellm.text_completion(
        model=f"text-completion-openai/{served.model}",
        prompt="The capital of France is",
        temperature=0,
        max_tokens=1,
        **_place(served, "openai"),
    )
    assert found.choices[0].text == " Paris"


def test_a_response_is_written(served: Served) -> None:
    found = litellm.responses(
        model=f"openai/{served.model}", input=QUESTION, temperature=0, **_place(served, "openai")
    )
    assert found.output[0].content[0].text == ANSWER
    assert found.usage.output_tokens == 8


def test_a_model_that_is_not_here_is_an_error(complete: Callable[..., Any], provider: str) -> None:
    expected = litellm.NotFoundError if provider == "openai" else litellm.APIConnectionError
    with pytest.raises(expected, match="absent"):
        complete("Hello", model="absent")


def test_models_are_listed(served: Served) -> None:
    place = _place(served, "openai")
    names = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", **place
    )
    assert "smollm2:latest" in " ".join(names)
    info = litellm.get_model_info(f"ollama/{served.caller}", api_base=served.url)
    assert info["supports_function_calling"] is True
