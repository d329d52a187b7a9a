"""Responses through OpenAI's own client, and in its own types."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.sllm.gateway.scripted import CONTEXT_TOKENS

if TYPE_CHECKING:
    import httpx

    from tests.sllm.gateway.scripted import Script

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Berne"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_an_answer_has_its_text_its_status_and_its_usage(
    openai_client: openai.OpenAI, script: Script
) -> None:
    done = openai_client.responses.create(model="plain", input="Hi", store=True)
    assert (done.object, done.status, done.error) == ("response", "completed", None)
    assert done.output_text == "Hello there."
    assert done.usage is not None
    assert done.usage.input_tokens == len(script.requests[0].prompt)
    assert done.usage.input_tokens_details.cached_tokens == 3
    assert done.usage.output_tokens == len("Hello there.") + 1
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    assert done.model_dump()["store"] is False
    assert script.prompts == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]


def test_a_stream_has_the_documented_events_in_order(openai_client: openai.OpenAI) -> None:
    with openai_client.responses.create(model="plain", input="Hi", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert text == last.response.output_text == "Hello there."
    assert last.response.usage is not None


@pytest.mark.parametrize(
    "answer", ["Yes.", "<think>\nHm.\n</think>\n\nYes.", f"Let me look. {CALL}"]
)
def test_whatever_is_said_has_the_types_of_the_client(
    http: httpx.Client, script: Script, answer: str
) -> None:
    script.answer = answer
    body = {
        "model": "able",
        "input": "Hi",
        "tools": [WEATHER],
        "text": {"format": {"type": "text"}},
    }
    Response.model_validate(http.post("/v1/responses", json=body).json())
    lines = http.post("/v1/responses", json=body | {"stream": True}).text.split("\n")
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for one in told:
        adapter.validate_python(one)
    assert kinds == [one["type"] for one in told]


def test_the_clients_own_accumulation_of_a_stream_is_the_response(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = f"<think>\nHm.\n</think>\n\nLet me look. {CALL}"
    with openai_client.responses.stream(model="able", input="Hi", tools=[WEATHER]) as stream:
        done = stream.get_final_response()
    assert [item.type for item in done.output] == ["reasoning", "message", "function_call"]
    assert done.output_text.strip() == "Let me look."


def test_length_leaves_an_answer_incomplete(openai_client: openai.OpenAI) -> None:
    done = openai_client.responses.create(model="plain", input="Hi", max_output_tokens=5)
    assert done.output_text == "Hello"
    assert done.status == "incomplete"
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.output[0].to_dict()["status"] == "incomplete"
    with openai_client.responses.create(
        model="plain", input="Hi", max_output_tokens=5, stream=True
    ) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_tools_are_called_and_their_results_go_on(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = CALL
    first = openai_client.responses.create(model="able", input="Berne?", tools=[WEATHER])
    call = first.output[0]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Berne"})
    assert "The weather in a city" in script.prompts[0]
    script.answer = "It rains."
    conversation: list[Any] = [
        {"role": "user", "content": "Berne?"},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    second = openai_client.responses.create(model="able", input=conversation, tools=[WEATHER])
    assert second.output_text == "It rains."
    assert "<|im_start|>tool\nrain<|im_end|>" in script.prompts[1]


def test_a_streamed_call_has_its_arguments(openai_client: openai.OpenAI, script: Script) -> None:
    script.answer = CALL
    with openai_client.responses.create(
        model="able", input="Berne?", tools=[WEATHER], stream=True
    ) as stream:
        events = [e for e in stream if e.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in events] == [{"city": "Berne"}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_can_be_required(openai_client: openai.OpenAI, script: Script, choice: Any) -> None:
    openai_client.responses.create(
        model="able", input="Hi", tools=[WEATHER], tool_choice=choice, reasoning={"effort": "none"}
    )
    assert script.requests[0].grammar is not None


@pytest.mark.parametrize(
    "wanted", [{"type": "json_object"}, {"type": "json_schema", "name": "x", "schema": SCHEMA}]
)
def test_a_format_holds_the_answer(
    openai_client: openai.OpenAI, script: Script, wanted: Any
) -> None:
    script.answer = '{"a":1}'
    done = openai_client.responses.create(model="plain", input="Hi", text={"format": wanted})
    assert done.output_text == '{"a":1}'
    grammar = script.requests[0].grammar
    assert grammar is not None
    allowed = grammar.begin().allowed()
    assert allowed[ord("{") // 8] >> ord("{") % 8 & 1
    assert not allowed[ord("H") // 8] >> ord("H") % 8 & 1


def test_items_are_one_conversation(openai_client: openai.OpenAI, script: Script) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "In verse."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Yes?", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": "Go on"},
    ]
    openai_client.responses.create(
        model="plain", input=items, instructions="Be brief.", temperature=0.3, top_p=0.4
    )
    said = [("system", "Be brief.\n\nIn verse."), ("user", "Hi"), ("assistant", "Yes?")]
    turns = [*said, ("user", "Go on")]
    shown = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert script.prompts == [f"{shown}<|im_start|>assistant\n"]
    parameters = script.requests[0].parameters
    assert (parameters.temperature, parameters.top_p) == (0.3, 0.4)


def test_thoughts_are_an_item_of_their_own(openai_client: openai.OpenAI, script: Script) -> None:
    script.answer = "<think>\nHm.\n</think>\n\nYes."
    done = openai_client.responses.create(model="able", input="Hi")
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.output_text == "Yes."
    assert done.usage is not None
    assert 0 < done.usage.output_tokens_details.reasoning_tokens < done.usage.output_tokens


def test_probabilities_are_those_of_the_text_alone(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = f"<think>\nHm.\n</think>\n\nLet me. {CALL}"
    asked: Any = {"model": "able", "input": "Hi", "tools": [WEATHER], "top_logprobs": 2}
    include: Any = ["message.output_text.logprobs"]
    done = openai_client.responses.create(**asked, include=include)
    message = done.output[1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(one.token for one in part.logprobs).strip() == "Let me."
    assert part.logprobs[-1].bytes == [ord(part.logprobs[-1].token)]
    assert [len(one.top_logprobs) for one in part.logprobs] == [2] * len(part.logprobs)
    with openai_client.responses.create(**asked, include=include, stream=True) as stream:
        events = list(stream)
    deltas = [e for e in events if e.type == "response.output_text.delta"]
    told = [one.token for e in deltas for one in e.logprobs]
    assert told == [one.token for one in part.logprobs]
    (end,) = (e for e in events if e.type == "response.output_text.done")
    assert [one.token for one in end.logprobs] == told


def test_a_character_of_several_tokens_has_all_of_them(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = "<think>\nH\u00fc?\n</think>\n\nZ\u00fcrich \U0001f3d4!"
    done = openai_client.responses.create(
        model="able", input="Hi", include=["message.output_text.logprobs"]
    )
    message = done.output[1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    raw = bytes(byte for one in part.logprobs or () for byte in one.bytes)
    assert raw.decode() == part.text == "Z\u00fcrich \U0001f3d4!"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: this server keeps nothing"),
        ({"background": True}, "keeps nothing"),
        ({"conversation": "conv_1"}, "keeps nothing"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "not a message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"type": "function_call", "call_id": "1"}]}, "name"),
        ({"tools": [{"type": "web_search"}]}, "function"),
        ({"tool_choice": "required"}, "no tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "no schema"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    openai_client: openai.OpenAI, more: Any, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        openai_client.responses.create(**({"model": "able", "input": "Hi"} | more))


def test_only_if_asked_are_the_oldest_items_left_out(
    openai_client: openai.OpenAI, script: Script
) -> None:
    items: list[Any] = [
        {"role": "user", "content": "old " * CONTEXT_TOKENS},
        {"role": "user", "content": "new"},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.responses.create(model="plain", input=items)
    assert caught.value.code == "context_length_exceeded"
    openai_client.responses.create(model="plain", input=items, truncation="auto")
    assert "new" in script.prompts[0]
    assert "old" not in script.prompts[0]


def test_an_error_in_the_middle_is_the_last_event(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.error = MemoryError("no more room")
    with openai_client.responses.create(model="plain", input="Hi", stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "no more room" in last.response.error.message
