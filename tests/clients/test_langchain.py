"""`langchain-ollama`: ChatOllama, OllamaLLM and OllamaEmbeddings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from ollama import ResponseError

if TYPE_CHECKING:
    from tests.clients.conftest import Served

pytestmark = pytest.mark.clients
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
CITY = {
    "title": "City",
    "description": "A city and how many live in it.",
    "type": "object",
    "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["name", "inhabitants"],
}


@pytest.fixture
def chat(served: Served) -> Any:
    """A chat with SmolLM2, which is looked for first."""
    return ChatOllama(
        model=served.model,
        base_url=served.url,
        temperature=0,
        num_predict=48,
        validate_model_on_init=True,
    )


def test_a_chat_is_answered_with_its_usage(chat: Any) -> None:
    answer = chat.invoke(QUESTION)
    assert answer.content == ANSWER
    usage = answer.usage_metadata
    assert usage["input_tokens"] == 37
    assert usage["output_tokens"] == 8
    assert usage["total_tokens"] == 45
    assert answer.response_metadata["done_reason"] == "stop"


def test_a_stream_is_the_same_answer_in_pieces(chat: Any) -> None:
    pieces = list(chat.stream(QUESTION))
    assert len(pieces) > 3
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content == ANSWER
    assert whole.usage_metadata["output_tokens"] == 8


def test_many_are_answered_at_a_time(chat: Any) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*[chat.ainvoke(QUESTION) for _ in range(4)])

    assert [answer.content for answer in asyncio.run(ask())] == [ANSWER] * 4


def test_a_tool_is_called_and_its_result_told(served: Served, weather: dict[str, Any]) -> None:
    caller = ChatOllama(model=served.caller, base_url=served.url, num_predict=48, temperature=0)
    caller = caller.bind_tools([weather])
    asked: list[Any] = [HumanMessage("What is the weather in Paris?")]
    answer = caller.invoke(asked)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage("rainy", tool_call_id=call["id"])
    assert caller.invoke([*asked, answer, result]).content == "It is rainy in Paris."


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_an_answer_is_structured(chat: Any, method: str) -> None:
    asked = "Answer in JSON, with name and inhabitants: which city is the capital of France?"
    found = chat.with_structured_output(CITY, method=method).invoke(asked)
    assert isinstance(found, dict)
    if method == "json_schema":
        assert found.keys() == {"name", "inhabitants"}
        assert isinstance(found["inhabitants"], int)


def test_text_is_completed(served: Served) -> None:
    model = OllamaLLM(model=served.model, base_url=served.url, temperature=0, num_predict=8)
    assert model.invoke(QUESTION).startswith("The capital of France")
    assert "".join(model.stream(QUESTION)) == model.invoke(QUESTION)


def test_texts_become_vectors(served: Served) -> None:
    model = OllamaEmbeddings(model=served.model, base_url=served.url)
    vectors = model.embed_documents(["a cat", "a kitten", "the rate of interest"])
    assert [len(vector) for vector in vectors] == [576] * 3
    assert model.embed_query("a cat") == pytest.approx(vectors[0], abs=1e-5)


def test_a_model_that_is_not_here_is_an_error(served: Served) -> None:
    absent = ChatOllama(model="absent", base_url=served.url)
    with pytest.raises(ResponseError, match="absent") as caught:
        absent.invoke("Hello")
    assert caught.value.status_code == 404
    with pytest.raises(ValueError, match="not found"):
        ChatOllama(model="absent", base_url=served.url, validate_model_on_init=True)
