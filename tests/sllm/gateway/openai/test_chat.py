"""Chat completions through OpenAI's own client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    import httpx

    from tests.sllm.gateway.scripted import Script

ASKED: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_an_answer_has_its_text_its_reason_and_its_usage(
    openai_client: openai.OpenAI, script: Script
) -> None:
    done = openai_client.chat.completions.create(model="plain", messages=ASKED)
    assert done.object == "chat.completion"
    assert done.choices[0].message.content == "Hello there."
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.completion_tokens == len("Hello there.") + 1
    assert done.usage.prompt_tokens == len(script.requests[0].prompt)
    assert script.prompts == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]


def test_a_stream_says_the_same_piece_by_piece(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.create(
        model="plain", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > len("Hello there.")


def test_length_ends_an_answer(openai_client: openai.OpenAI) -> None:
    done = openai_client.chat.completions.create(
        model="plain", messages=ASKED, max_completion_tokens=5
    )
    assert done.choices[0].message.content == "Hello"
    assert done.choices[0].finish_reason == "length"


def test_a_stop_text_ends_an_answer_and_the_engines_work(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.free_tokens = len("Hello th")
    done = openai_client.chat.completions.create(model="plain", messages=ASKED, stop=" th")
    assert done.choices[0].message.content == "Hello"
    assert done.choices[0].finish_reason == "stop"
    assert script.opened[0].tickets[0].cancelled.wait(5)


def test_what_is_asked_for_reaches_the_engine(openai_client: openai.OpenAI, script: Script) -> None:
    openai_client.chat.completions.create(
        model="plain",
        messages=ASKED,
        seed=7,
        temperature=0.3,
        top_p=0.4,
        frequency_penalty=0.5,
        presence_penalty=0.6,
        logit_bias={"65": 3},
        max_tokens=9,
    )
    parameters = script.requests[0].parameters
    assert (parameters.seed, parameters.max_tokens) == (7, 9)
    assert (parameters.temperature, parameters.top_p) == (0.3, 0.4)
    assert (parameters.frequency_penalty, parameters.presence_penalty) == (0.5, 0.6)
    assert parameters.logit_bias == {65: 3}


def test_several_answers_have_an_index_and_a_seed_each(
    openai_client: openai.OpenAI, script: Script
) -> None:
    done = openai_client.chat.completions.create(model="plain", messages=ASKED, n=3, seed=1)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert sorted(request.parameters.seed for request in script.requests) == [1, 2, 3]


def test_several_answers_are_streamed_side_by_side(openai_client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    with openai_client.chat.completions.create(
        model="plain", messages=ASKED, n=2, stream=True
    ) as stream:
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "Hello there.", 1: "Hello there."}


def test_probabilities_are_told_token_by_token(openai_client: openai.OpenAI) -> None:
    done = openai_client.chat.completions.create(
        model="plain", messages=ASKED, logprobs=True, top_logprobs=2, stop="lo"
    )
    assert done.choices[0].logprobs is not None
    told = done.choices[0].logprobs.content
    assert told is not None
    assert [one.token for one in told] == ["H", "e", "l"]
    assert [other.token for other in told[0].top_logprobs] == ["H", "I"]
    assert told[0].bytes == [ord("H")]


def test_tools_are_called(openai_client: openai.OpenAI, script: Script) -> None:
    call = {"name": "weather", "arguments": {"city": "Berne"}}
    script.answer = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    done = openai_client.chat.completions.create(model="able", messages=ASKED, tools=[WEATHER])
    assert done.choices[0].message.tool_calls
    made = done.choices[0].message.tool_calls[0]
    assert made.type == "function"
    assert made.function.name == "weather"
    assert json.loads(made.function.arguments) == {"city": "Berne"}
    assert done.choices[0].finish_reason == "tool_calls"
    assert "The weather in a city" in script.prompts[0]


def test_a_streamed_call_has_an_index_and_an_id(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    with openai_client.chat.completions.create(
        model="able", messages=ASKED, tools=[WEATHER], stream=True
    ) as stream:
        calls = [
            call
            for chunk in stream
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
    assert [(call.index, bool(call.id)) for call in calls] == [(0, True)]


def test_a_result_of_a_tool_is_part_of_the_conversation(
    openai_client: openai.OpenAI, script: Script
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    openai_client.chat.completions.create(model="able", messages=messages, tools=[WEATHER])
    assert "<|im_start|>tool\nrain<|im_end|>" in script.prompts[0]


def test_a_schema_holds_the_answer(openai_client: openai.OpenAI, script: Script) -> None:
    script.answer = '{"a":1}'
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    openai_client.chat.completions.create(model="plain", messages=ASKED, response_format=wanted)
    grammar = script.requests[0].grammar
    assert grammar is not None
    allowed = grammar.begin().allowed()
    assert [token for token in range(256) if allowed[token // 8] >> token % 8 & 1] == [ord("{")]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_can_be_required(openai_client: openai.OpenAI, script: Script, choice: Any) -> None:
    openai_client.chat.completions.create(
        model="able", messages=ASKED, tools=[WEATHER], tool_choice=choice, reasoning_effort="none"
    )
    assert script.requests[0].grammar is not None


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": "other"},
        {"response_format": {"type": "json_schema"}},
        {"top_logprobs": 2},
    ],
)
def test_what_contradicts_itself_is_refused(openai_client: openai.OpenAI, more: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="able", messages=ASKED, **more)
    assert caught.value.param == list(more)[-1]


def test_thoughts_are_told_apart(openai_client: openai.OpenAI, script: Script) -> None:
    script.answer = "<think>\nHm.\n</think>\n\nYes."
    done = openai_client.chat.completions.create(model="able", messages=ASKED)
    message = done.choices[0].message
    assert message.content == "Yes."
    assert message.model_dump()["reasoning"].strip() == "Hm."
    assert done.usage is not None
    details = done.usage.completion_tokens_details
    assert details is not None
    assert details.reasoning_tokens is not None
    assert 0 < details.reasoning_tokens < done.usage.completion_tokens


def test_parts_of_text_are_one_text(openai_client: openai.OpenAI, script: Script) -> None:
    parts: Any = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
    ]
    openai_client.chat.completions.create(model="plain", messages=messages)
    assert script.prompts[0].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>"
    )


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 3, "temperature"),
        ("max_tokens", 0, "max_tokens"),
        ("n", 99, "n"),
        ("messages", [], "messages"),
        ("stop", 5, "stop"),
        ("stop", ["x"] * 65, "stop"),
    ],
)
def test_a_wrong_field_is_named(
    openai_client: openai.OpenAI, field: str, value: Any, param: str
) -> None:
    body: dict[str, Any] = {"model": "plain", "messages": ASKED, field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(**body)
    assert str(caught.value.param).startswith(param)
    assert caught.value.type == "invalid_request_error"


def test_pictures_are_refused(openai_client: openai.OpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError, match="image_url"):
        openai_client.chat.completions.create(
            model="plain", messages=[{"role": "user", "content": parts}]
        )


def test_an_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(model="plane", messages=ASKED)
    assert caught.value.code == "model_not_found"
    assert "plain" in str(caught.value)


def test_a_full_queue_says_when_to_try_again(openai_client: openai.OpenAI, script: Script) -> None:
    script.full = True
    with pytest.raises(openai.RateLimitError) as caught:
        openai_client.chat.completions.create(model="plain", messages=ASKED)
    assert caught.value.response.headers["retry-after"] == "3"


def test_a_prompt_that_is_too_long_says_so(openai_client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "long " * 1000}]
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="plain", messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_an_error_in_the_middle_reaches_the_client(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.error = MemoryError("no more room")
    with (
        openai_client.chat.completions.create(model="plain", messages=ASKED, stream=True) as stream,
        pytest.raises(openai.APIError, match="no more room"),
    ):
        list(stream)


def test_a_body_that_is_no_json_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", content="{")
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]["message"]
