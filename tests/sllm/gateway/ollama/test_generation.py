"""Generate and chat through Ollama's own client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ollama
import pytest

from sllm.gateway.preparation import ANSWER_SHARE
from tests.sllm.gateway.scripted import CONTEXT_TOKENS

if TYPE_CHECKING:
    import httpx

    from sllm.library.models import Library
    from tests.sllm.gateway.scripted import Script

ASKED = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def test_a_prompt_is_asked_as_a_conversation(ollama_client: ollama.Client, script: Script) -> None:
    done = ollama_client.generate("plain", "Hi", system="Be brief.")
    assert done.response == "Hello there."
    assert (done.done, done.done_reason) == (True, "stop")
    assert done.eval_count == len("Hello there.") + 1
    assert done.total_duration is not None
    assert done.total_duration > 0
    assert script.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_the_context_goes_on_where_it_was(ollama_client: ollama.Client, script: Script) -> None:
    done = ollama_client.generate("plain", "Hi")
    assert done.context is not None
    ollama_client.generate("plain", "And?", context=done.context)
    assert script.requests[1].prompt[: len(done.context)] == tuple(done.context)


def test_raw_prompts_are_left_as_they_are(ollama_client: ollama.Client, script: Script) -> None:
    done = ollama_client.generate("plain", "Once", raw=True)
    assert script.prompts == ["Once"]
    assert done.context is None


def test_a_model_without_a_template_continues_the_prompt(
    ollama_client: ollama.Client, script: Script
) -> None:
    ollama_client.generate("base", "Once")
    assert script.prompts == ["Once"]


def test_a_template_of_the_requests_own_is_used(
    ollama_client: ollama.Client, script: Script
) -> None:
    ollama_client.generate("plain", "Hi", template="[{{ messages[0].content }}]")
    assert script.prompts == ["[Hi]"]


def test_a_stream_ends_with_the_numbers(ollama_client: ollama.Client) -> None:
    lines = list(ollama_client.generate("plain", "Hi", stream=True))
    assert "".join(one.response or "" for one in lines) == "Hello there."
    assert [one.done for one in lines[:-1]] == [False] * (len(lines) - 1)
    last = lines[-1]
    assert (last.done, last.done_reason, last.response) == (True, "stop", "")
    assert last.prompt_eval_count


def test_a_conversation_has_an_answer(ollama_client: ollama.Client) -> None:
    done = ollama_client.chat("plain", ASKED)
    assert (done.message.role, done.message.content) == ("assistant", "Hello there.")
    text = "".join(
        one.message.content or "" for one in ollama_client.chat("plain", ASKED, stream=True)
    )
    assert text == "Hello there."


def test_options_reach_the_engine_over_ollamas_defaults(
    ollama_client: ollama.Client, script: Script
) -> None:
    ollama_client.chat("plain", ASKED, options={"num_predict": 5, "seed": 3, "top_k": 7})
    parameters = script.requests[0].parameters
    assert (parameters.max_tokens, parameters.seed, parameters.top_k) == (5, 3, 7)
    assert (parameters.temperature, parameters.top_p) == (0.8, 0.9)


def test_tools_are_called(ollama_client: ollama.Client, script: Script) -> None:
    script.answer = '<tool_call>\n{"name": "weather", "arguments": {"city": "Berne"}}\n</tool_call>'
    done = ollama_client.chat("able", ASKED, tools=[WEATHER])
    assert done.message.tool_calls
    assert done.message.tool_calls[0].function.arguments == {"city": "Berne"}


def test_thoughts_are_told_apart(ollama_client: ollama.Client, script: Script) -> None:
    script.answer = "<think>\nHm.\n</think>\n\nYes."
    done = ollama_client.chat("able", ASKED, think=True)
    assert (done.message.thinking or "").strip() == "Hm."
    assert done.message.content == "Yes."


def test_json_is_held_to(ollama_client: ollama.Client, script: Script) -> None:
    script.answer = "{}"
    ollama_client.chat("plain", ASKED, format="json")
    assert script.requests[0].grammar is not None


def test_probabilities_are_told(ollama_client: ollama.Client) -> None:
    done = ollama_client.generate("plain", "Hi", logprobs=True, top_logprobs=1)
    assert done.logprobs is not None
    assert [one.token for one in done.logprobs] == list("Hello there.")


def test_an_empty_prompt_loads_and_unloads(ollama_client: ollama.Client) -> None:
    assert ollama_client.generate("plain").done_reason == "load"
    assert [one.model for one in ollama_client.ps().models] == ["plain:latest"]
    assert ollama_client.chat("plain", keep_alive=0).done_reason == "unload"
    assert ollama_client.ps().models == []


def test_a_model_that_was_removed_while_it_was_loaded_can_be_unloaded(
    ollama_client: ollama.Client, library: Library
) -> None:
    ollama_client.generate("plain", keep_alive=-1)
    library.remove("plain")
    assert [one.model for one in ollama_client.ps().models] == ["plain:latest"]
    assert ollama_client.generate("plain", keep_alive=0).done_reason == "unload"
    assert ollama_client.ps().models == []
    with pytest.raises(ollama.ResponseError, match="no model 'plain'"):
        ollama_client.generate("plain", keep_alive=0)


def test_the_oldest_messages_go_when_there_are_too_many(
    ollama_client: ollama.Client, script: Script
) -> None:
    messages = [{"role": "user", "content": f"{n} " + "x" * 500} for n in range(20)]
    ollama_client.chat("plain", [{"role": "system", "content": "S"}, *messages])
    assert script.prompts[0].startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n")
    assert "19 xxx" in script.prompts[0]
    assert "\n0 xxx" not in script.prompts[0]


def test_what_is_left_of_a_long_conversation_has_room_for_an_answer(
    ollama_client: ollama.Client, script: Script
) -> None:
    messages = [{"role": "user", "content": "x" * 380}] * 10
    ollama_client.chat("plain", messages)
    whole = CONTEXT_TOKENS - len(script.requests[0].prompt)
    assert whole >= CONTEXT_TOKENS // ANSWER_SHARE
    ollama_client.chat("plain", messages, options={"num_predict": 9})
    assert script.prompts[1].count("<|im_start|>user") == len(messages)


def test_what_is_left_of_a_long_conversation_begins_with_a_user(
    ollama_client: ollama.Client, script: Script
) -> None:
    turns = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y" * 600}]
    ollama_client.chat("plain", [*turns * 3, {"role": "user", "content": "x"}])
    assert script.prompts[0].startswith("<|im_start|>user\nxxx")
    assert script.prompts[0].count("<|im_start|>assistant\ny") == 2


def test_the_oldest_ids_of_a_context_go_when_there_are_too_many(
    ollama_client: ollama.Client, script: Script
) -> None:
    context = list(b"old " * 10 + b"new " * 1020)
    ollama_client.generate("plain", "And?", context=context)
    (asked,) = script.requests
    assert len(asked.prompt) == CONTEXT_TOKENS - CONTEXT_TOKENS // ANSWER_SHARE
    assert script.prompts[0].endswith(
        "new <|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(ollama.ResponseError, match="shorten the prompt"):
        ollama_client._request(
            ollama.GenerateResponse,
            "POST",
            "/api/generate",
            json={"model": "plain", "prompt": "And?", "context": context, "truncate": False},
        )


def test_the_middle_goes_of_a_prompt_that_is_too_long_by_itself(
    ollama_client: ollama.Client, script: Script
) -> None:
    limit = CONTEXT_TOKENS - CONTEXT_TOKENS // ANSWER_SHARE
    prompt = "begin" + "m" * CONTEXT_TOKENS + "end."
    ollama_client.generate("plain", prompt, raw=True)
    assert script.prompts[0] == "begi" + "m" * (limit - 8) + "end."
    ollama_client.generate("plain", prompt, raw=True, options={"num_keep": 5, "num_predict": 6})
    assert script.prompts[1] == "begin" + "m" * (CONTEXT_TOKENS - 15) + "end."
    ollama_client.generate("plain", prompt, raw=True, options={"num_keep": -1})
    assert script.prompts[2] == "begin" + "m" * (limit - 6) + "."
    ollama_client.generate("plain", prompt[-CONTEXT_TOKENS + 1 :], raw=True)
    assert len(script.requests[3].prompt) == CONTEXT_TOKENS - 1
    ollama_client.chat("plain", [{"role": "user", "content": prompt}])
    assert len(script.requests[4].prompt) == limit
    assert script.prompts[4].startswith("<|im_start|>use")
    assert script.prompts[4].endswith("mend.<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("field", ["truncate", "shift"])
@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("generate", {"prompt": "x" * CONTEXT_TOKENS, "raw": True}),
        ("chat", {"messages": [{"role": "user", "content": "x" * CONTEXT_TOKENS}]}),
    ],
)
def test_what_is_not_to_be_cut_is_refused(
    http: httpx.Client, route: str, asked: dict[str, Any], field: str
) -> None:
    answer = http.post(f"/api/{route}", json={"model": "plain", **asked, field: False})
    assert answer.status_code == 400
    assert "shorten the prompt" in answer.json()["error"]


@pytest.mark.parametrize(
    ("made", "asked", "roles"),
    [
        ([], [], "system: S, user: Hi"),
        (["user: A", "assistant: B"], [], "system: S, user: A, assistant: B, user: Hi"),
        (["user: A"], ["system: R"], "system: R, user: A, user: Hi"),
        (["system: M", "user: A"], [], "system: M, user: A, user: Hi"),
        (["system: M", "user: A"], ["system: R"], "system: R, user: A, user: Hi"),
    ],
)
def test_messages_of_a_models_maker_go_before_and_one_system_message_first(
    ollama_client: ollama.Client, script: Script, made: list[str], asked: list[str], *, roles: str
) -> None:
    def messages(said: list[str]) -> list[dict[str, str]]:
        return [dict(zip(("role", "content"), one.split(": "), strict=True)) for one in said]

    shown = "{{ m.role }}: {{ m.content }}{{ ', ' if not loop.last }}"
    template = "{% for m in messages %}" + shown + "{% endfor %}"
    ollama_client.create(
        "made", from_="plain", system="S", template=template, messages=messages(made)
    )
    ollama_client.chat("made", messages([*asked, "user: Hi"]))
    assert script.prompts == [roles]


def test_an_earlier_answers_ids_begin_with_the_makers_messages_already(
    ollama_client: ollama.Client, script: Script
) -> None:
    begun = [{"role": "user", "content": "Before."}]
    ollama_client.create("made", from_="plain", messages=begun)
    done = ollama_client.generate("made", "Hi")
    ollama_client.generate("made", "And?", context=done.context)
    assert [prompt.count("Before.") for prompt in script.prompts] == [1, 1]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"mirostat": 1}}, "mirostat"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"think": True}, "thinking"),
        ({"tools": [WEATHER]}, "tools"),
    ],
)
def test_what_cannot_be_done_is_refused(ollama_client: ollama.Client, more: Any, text: str) -> None:
    with pytest.raises(ollama.ResponseError, match=text) as caught:
        ollama_client.chat("plain", ASKED, **more)
    assert caught.value.status_code == 400


def test_an_unknown_model_is_not_found(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ollama_client.chat("nobody", ASKED)
    assert caught.value.status_code == 404


def test_a_full_queue_is_unavailable(http: httpx.Client, script: Script) -> None:
    script.full = True
    answer = http.post("/api/chat", json={"model": "plain", "messages": ASKED})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "3"


def test_an_error_in_the_middle_is_the_last_line(http: httpx.Client, script: Script) -> None:
    script.error = MemoryError("no more room")
    answer = http.post("/api/chat", json={"name": "plain", "messages": ASKED})
    assert answer.headers["content-type"] == "application/x-ndjson"
    last = json.loads(answer.text.splitlines()[-1])
    assert "no more room" in last["error"]
