"""Plain completions through OpenAI's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.sllm.gateway.scripted import Script


def test_a_plain_prompt_goes_to_the_engine_as_it_is(
    openai_client: openai.OpenAI, script: Script
) -> None:
    done = openai_client.completions.create(model="base", prompt="Once", max_tokens=5)
    assert done.object == "text_completion"
    assert done.choices[0].text == "Hello"
    assert done.choices[0].finish_reason == "length"
    assert script.prompts == ["Once"]
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 5)


def test_sixteen_tokens_are_enough_unless_more_are_asked_for(
    openai_client: openai.OpenAI, script: Script
) -> None:
    openai_client.completions.create(model="base", prompt="Once")
    assert script.requests[0].parameters.max_tokens == 16


def test_every_prompt_has_its_answers_in_order(
    openai_client: openai.OpenAI, script: Script
) -> None:
    done = openai_client.completions.create(model="base", prompt=["a", "bb"], n=2)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert script.prompts == ["a", "a", "bb", "bb"]
    assert done.usage is not None
    assert done.usage.prompt_tokens == 3


def test_ids_are_a_prompt_too(openai_client: openai.OpenAI, script: Script) -> None:
    openai_client.completions.create(model="base", prompt=[79, 110])
    assert script.prompts == ["On"]


def test_a_stream_says_the_same(openai_client: openai.OpenAI) -> None:
    with openai_client.completions.create(
        model="base", prompt="Once", stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Hello there."
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_probabilities_have_an_offset_each(openai_client: openai.OpenAI) -> None:
    done = openai_client.completions.create(model="base", prompt="x", max_tokens=2, logprobs=1)
    told = done.choices[0].logprobs
    assert told is not None
    assert (told.tokens, told.text_offset) == (["H", "e"], [0, 1])
    assert told.token_logprobs == [-0.5, -0.5]
    assert told.top_logprobs == [{"H": -0.5}, {"e": -0.5}]


@pytest.mark.parametrize("prompt", ["Once", [79, 110, 99, 101]])
def test_an_echo_begins_with_the_prompt(openai_client: openai.OpenAI, prompt: Any) -> None:
    done = openai_client.completions.create(model="base", prompt=prompt, max_tokens=2, echo=True)
    assert done.choices[0].text == "OnceHe"
    assert done.choices[0].logprobs is None
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 2)


def test_an_echo_s_probabilities_are_those_of_prompt_and_answer(
    openai_client: openai.OpenAI,
) -> None:
    asked: Any = {"model": "base", "prompt": "On", "max_tokens": 1, "echo": True, "logprobs": 1}
    told = openai_client.completions.create(**asked).choices[0].logprobs
    assert told is not None
    assert told.tokens == ["O", "n", "H"]
    assert told.token_logprobs == [None, -0.25, -0.5]
    assert told.top_logprobs == [None, {"n": -0.25}, {"H": -0.5}]
    assert told.text_offset == [0, 1, 2]
    with openai_client.completions.create(**asked, stream=True) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "OnH"
    told_tokens = [
        token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens or ()
    ]
    assert told_tokens == told.tokens


def test_the_token_that_ends_an_answer_is_told_beside_an_echo(
    openai_client: openai.OpenAI, script: Script
) -> None:
    script.answer = ""
    done = openai_client.completions.create(model="base", prompt="On", echo=True, logprobs=1)
    told = done.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or ()) == 3, "whoever leaves the answer's out leaves one out"
    assert done.choices[0].text == "On"


def test_a_prompt_alone_may_be_asked_about(openai_client: openai.OpenAI) -> None:
    done = openai_client.completions.create(
        model="base", prompt=["On", "to"], max_tokens=0, echo=True, logprobs=0
    )
    assert [choice.text for choice in done.choices] == ["On", "to"]
    assert [choice.finish_reason for choice in done.choices] == ["length", "length"]
    told = done.choices[1].logprobs
    assert told is not None
    assert told.token_logprobs == [None, -0.25]
    assert done.usage is not None
    assert done.usage.completion_tokens == 0


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0},
        {"echo": True, "suffix": "end"},
        {"best_of": 3},
        {"prompt": []},
        {"suffix": "end"},
        {"prompt": [999999]},
        {"prompt": ""},
    ],
)
def test_what_cannot_be_done_is_refused(openai_client: openai.OpenAI, more: Any) -> None:
    body = {"model": "base", "prompt": "x", **more}
    with pytest.raises(openai.BadRequestError, match=next(iter(more))) as caught:
        openai_client.completions.create(**body)
    assert caught.value.param == next(iter(more))


@pytest.mark.parametrize(
    ("prompt", "param", "told"),
    [
        ([-1], "prompt.0", "greater than or equal to 0"),
        ([[79], []], "prompt.1", "at least 1 item"),
        ([[79], [80, "x"]], "prompt.1.1", "valid integer"),
    ],
)
def test_what_is_wrong_inside_of_a_prompt_is_named(
    openai_client: openai.OpenAI, prompt: Any, param: str, told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        openai_client.completions.create(model="base", prompt=prompt)
    assert caught.value.param == param
