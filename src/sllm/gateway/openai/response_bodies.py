"""Bodies of requests to OpenAI's Responses API, and what they ask for in the form of `Asked`.

The server keeps nothing of an answer, so what refers to an earlier one is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from sllm.core.errors import InvalidRequestError
from sllm.gateway.asked import Asked, Chat, text_of
from sllm.gateway.openai.bodies import arguments_of, choose_tools, think_of
from sllm.gateway.options import OPENAI_DEFAULTS
from sllm.gateway.request_body import RequestBody

_LOGPROBS = "message.output_text.logprobs"
_KEEPS_NOTHING = "this server keeps nothing of earlier answers; send the whole conversation"


class MessageItem(RequestBody):
    """A message, or one of an earlier answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]


class CallItem(RequestBody):
    """A call of a tool in an earlier answer; its arguments are JSON."""

    call_id: str
    name: str
    arguments: str = "{}"


class ResultItem(RequestBody):
    """What a tool that was called returned."""

    call_id: str
    output: str | list[dict[str, Any]]


class ThoughtItem(RequestBody):
    """Thoughts of an earlier answer."""

    content: list[dict[str, Any]] | None = None


def _kind_of(item: Any) -> Any:
    return (item.get("type") or "message") if isinstance(item, dict) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ThoughtItem, Tag("reasoning")],
    Discriminator(
        _kind_of,
        custom_error_type="item_type",
        custom_error_message="not a message, function_call, function_call_output or reasoning item",
    ),
]


def _items_of(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class FunctionTool(RequestBody):
    """A tool that is offered."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(RequestBody):
    """What an answer has to look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class TextConfig(RequestBody):
    """How text is to be written."""

    format: TextFormat = Field(default_factory=TextFormat)


class Reasoning(RequestBody):
    """How much thought to give."""

    effort: str | None = None


class ResponseBody(RequestBody):
    """POST /v1/responses."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[list[Item], BeforeValidator(_items_of), Field(min_length=1)]
    instructions: str | None = None
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    text: TextConfig = Field(default_factory=TextConfig)
    reasoning: Reasoning | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None

    @property
    def wanted_logprobs(self) -> int | None:
        """Return how many probabilities are to be reported, None for no report."""
        if _LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidRequestError(f"top_logprobs: it needs {_LOGPROBS} in include")
        return None

    def asked(self) -> Asked:
        """Return what is asked for. Raises InvalidRequestError for what needs a server's memory."""
        for name in ("previous_response_id", "conversation", "prompt", "background"):
            if getattr(self, name):
                raise InvalidRequestError(f"{name}: {_KEEPS_NOTHING}")
        return Asked(
            model=self.model,
            prompt=Chat(messages=tuple(_messages_of(self.input, self.instructions))),
            options={
                "temperature": self.temperature,
                "top_p": self.top_p,
                "num_predict": self.max_output_tokens,
            },
            defaults=OPENAI_DEFAULTS,
            format=_format_of(self.text.format),
            tools=choose_tools([_offer(tool) for tool in self.tools], self.tool_choice),
            think=think_of(self.reasoning.effort if self.reasoning else None),
            truncate=self.truncation == "auto",
        )


def _offer(tool: FunctionTool) -> dict[str, Any]:
    function = tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": function}


def _format_of(wanted: TextFormat) -> Literal["json"] | dict[str, Any] | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    if wanted.schema_ is None:
        raise InvalidRequestError("text.format: json_schema has no schema")
    return wanted.schema_


def _messages_of(items: list[Item], instructions: str | None) -> list[dict[str, Any]]:
    """Return messages in the form of chat templates; what one answer consists of is one of them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        message = _message_of(item)
        last = messages[-1] if messages else {}
        if message["role"] == "assistant" == last.get("role"):
            last["content"] += message.pop("content")
            calls = [*last.get("tool_calls", ()), *message.pop("tool_calls", ())]
            last |= {**message, **({"tool_calls": calls} if calls else {})}
        else:
            messages.append(message)
    if instructions:
        if messages[0]["role"] == "system":
            instructions = f"{instructions}\n\n{messages.pop(0)['content']}"
        messages.insert(0, {"role": "system", "content": instructions})
    return messages


def _message_of(item: Item) -> dict[str, Any]:
    if isinstance(item, CallItem):
        function = {"name": item.name, "arguments": arguments_of(item.arguments)}
        call = {"type": "function", "id": item.call_id, "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if isinstance(item, ResultItem):
        text = text_of(item.output, field_name="input")
        return {"role": "tool", "tool_call_id": item.call_id, "content": text}
    if isinstance(item, ThoughtItem):
        text = text_of(item.content, field_name="input")
        return {"role": "assistant", "content": "", "reasoning_content": text}
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": text_of(item.content, field_name="input")}
