"""Bodies of requests for text in OpenAI's API, and what they ask for in the form of `Asked`.

Fields that make no difference here (`user`, `store`, `metadata`, …) are let through; those that
would, and cannot be honoured, are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sllm.core.errors import InvalidRequestError
from sllm.gateway.asked import Asked, Chat, Plain, Tools, text_of
from sllm.gateway.options import OPENAI_DEFAULTS
from sllm.gateway.request_body import RequestBody

if TYPE_CHECKING:
    from collections.abc import Mapping

CHOICES_MAX = 16
Text = str | list[dict[str, Any]] | None
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class FunctionCall(RequestBody):
    """A tool that an assistant called; its arguments are JSON."""

    name: str
    arguments: str = "{}"


class Call(RequestBody):
    """A call in a message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestBody):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None


class Function(RequestBody):
    """What a tool is called and takes."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(RequestBody):
    """A tool that is offered."""

    type: Literal["function"]
    function: Function


class StreamOptions(RequestBody):
    """What a stream ends with."""

    include_usage: bool = False


class Schema(RequestBody):
    """A JSON schema by its name."""

    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class Format(RequestBody):
    """What an answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Sampled(RequestBody):
    """What both kinds of requests for text have in common."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None

    @property
    def include_usage(self) -> bool:
        """Return whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self, max_tokens: int | None) -> dict[str, Any]:
        """Return what it says of sampling, as options."""
        return {
            "num_predict": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": self.stop,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
        }


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: Format | None = None
    reasoning_effort: str | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """Return how many probabilities are to be reported, None for no report."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs: it needs logprobs to be true")
        return (self.top_logprobs or 0) if self.logprobs else None

    def asked(self) -> Asked:
        """Return what is asked for."""
        return Asked(
            model=self.model,
            prompt=Chat(messages=tuple(to_template(message) for message in self.messages)),
            options=self.options(self.max_completion_tokens or self.max_tokens),
            defaults=OPENAI_DEFAULTS,
            format=_format(self.response_format),
            tools=choose_tools(
                [tool.model_dump(exclude_none=True) for tool in self.tools or ()], self.tool_choice
            ),
            think=think_of(self.reasoning_effort),
        )


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    def asked(self) -> list[Asked]:
        """Return what is asked for, one for each prompt."""
        if self.echo and self.suffix:
            raise InvalidRequestError("echo: with a suffix there is no text to begin with")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens: 0 tokens are an answer only with echo")
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise InvalidRequestError("best_of: it is not supported; ask for n, and choose")
        return [
            Asked(
                model=self.model,
                prompt=plain,
                options=self.options(16 if self.max_tokens is None else max(self.max_tokens, 1)),
                defaults=OPENAI_DEFAULTS,
            )
            for plain in self._prompts()
        ]

    def _prompts(self) -> list[Plain]:
        shared = Plain(suffix=self.suffix or "", echo=bool(self.echo), alone=self.max_tokens == 0)
        whole = self.prompt
        single = isinstance(whole, str) or (bool(whole) and isinstance(whole[0], int))
        prompts: list[Any] = [whole] if single else list(whole)
        if not 0 < len(prompts) <= CHOICES_MAX:
            raise InvalidRequestError(f"prompt: {len(prompts)} prompts are not 1 to {CHOICES_MAX}")
        return [
            replace(shared, text=one) if isinstance(one, str) else replace(shared, ids=tuple(one))
            for one in prompts
        ]


def to_template(message: Message) -> dict[str, Any]:
    """Return a message in the form of chat templates."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    found: dict[str, Any] = {
        "role": role,
        "content": text_of(message.content, field_name="messages"),
    }
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {
                    "name": call.function.name,
                    "arguments": arguments_of(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    given = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
    }
    return found | {name: value for name, value in given.items() if value is not None}


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments; raises InvalidRequestError for what is not a JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequestError(f"tool_calls: the arguments {text[:64]!r} are not a JSON object")
    return found


def choose_tools(tools: list[dict[str, Any]], choice: str | Mapping[str, Any] | None) -> Tools:
    """Return the tools of a request, and which of them is to be called."""
    if choice == "none" or not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice: there are no tools to choose from")
        return Tools()
    if choice in (None, "auto", "required"):
        return Tools(offered=tuple(tools), choice=str(choice or "auto"))
    named = choice if isinstance(choice, dict) else {}
    name = (named.get("function") or named).get("name")
    if name not in [tool["function"]["name"] for tool in tools]:
        raise InvalidRequestError(
            f"tool_choice: {choice!r} is not none, auto, required or one of the tools"
        )
    return Tools(offered=tuple(tools), choice=str(name))


def think_of(effort: str | None) -> bool | None:
    """Return whether an effort asks for thoughts; a model that has none is not asked."""
    return False if effort == "none" else None


def _format(wanted: Format | None) -> Literal["json"] | dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    schema = wanted.json_schema.schema_ if wanted.json_schema else None
    if schema is None:
        raise InvalidRequestError("response_format: json_schema has no schema")
    return schema
