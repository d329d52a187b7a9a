"""Bodies of requests for text in Ollama's API, and what they ask for in the form of `Asked`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sllm.core.errors import InvalidRequestError
from sllm.gateway.asked import Asked, Chat, Plain, Tools
from sllm.gateway.keep_alive import parse_keep_alive
from sllm.gateway.options import OLLAMA_DEFAULTS
from sllm.gateway.request_body import RequestBody

Name = Annotated[str, Field(min_length=1)]
_EFFORTS = ("low", "medium", "high", "max")


class Named(RequestBody):
    """A request about a model, which older clients call `name`."""

    model: Name

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("model") and value.get("name"):
            return {**value, "model": value["name"]}
        return value


class Kept(Named):
    """A request that says how long the model stays."""

    keep_alive: float | str | None = None

    @property
    def keep_alive_s(self) -> float | None:
        """Return seconds, None for the server's own."""
        return None if self.keep_alive in (None, "") else parse_keep_alive(self.keep_alive)


class Sampled(Kept):
    """What both kinds of requests for text have in common."""

    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """Return how many probabilities are to be reported, None for no report."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinks(self) -> bool | None:
        """Return whether thoughts are wanted; a degree of thinking is thinking."""
        if self.think is None or isinstance(self.think, bool):
            return self.think
        if self.think not in _EFFORTS:
            raise InvalidRequestError(
                f"think: {self.think!r} is not true, false, {', '.join(_EFFORTS)}"
            )
        return True

    def about(self, prompt: Chat | Plain, tools: Tools | None = None) -> Asked:
        """Return what is asked for about a prompt."""
        return Asked(
            model=self.model,
            prompt=prompt,
            options=self.options or {},
            defaults=OLLAMA_DEFAULTS,
            format=self.format or None,
            tools=tools or Tools(),
            think=self.thinks,
            truncate=self.truncate,
            cut=self.truncate and self.shift,
            keep_alive_s=self.keep_alive_s,
        )


class GenerateBody(Sampled):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str = ""
    system: str | None = None
    template: str | None = None
    context: list[Annotated[int, Field(ge=0)]] | None = None
    raw: bool = False
    images: list[str] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it only loads or unloads."""
        return not self.prompt and not self.suffix

    def asked(self) -> Asked:
        """Return what is asked for."""
        _require_no_images(self.images)
        if self.raw and (self.system or self.template or self.context):
            raise InvalidRequestError("raw: it leaves no place for system, template or context")
        if self.raw or self.suffix:
            return self.about(Plain(text=self.prompt, suffix=self.suffix))
        chat = Chat(
            messages=({"role": "user", "content": self.prompt},),
            system=self.system or None,
            context=tuple(self.context or ()),
            template=self.template or None,
            single=True,
        )
        return self.about(chat)


class Function(RequestBody):
    """A tool that an assistant called."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Call(RequestBody):
    """A call in a message."""

    id: str = ""
    function: Function


class Message(RequestBody):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def to_template(self) -> dict[str, Any]:
        """Return it in the form of chat templates."""
        _require_no_images(self.images)
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            found["tool_calls"] = [
                {"type": "function", **call.model_dump()} for call in self.tool_calls
            ]
        given = {
            "name": self.tool_name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.thinking,
        }
        return found | {name: value for name, value in given.items() if value}


class Described(RequestBody):
    """What a tool is called and takes."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(RequestBody):
    """A tool that is offered."""

    type: Literal["function"] = "function"
    function: Described


class ChatBody(Sampled):
    """POST /api/chat."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[Tool] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it only loads or unloads."""
        return not self.messages

    def asked(self) -> Asked:
        """Return what is asked for."""
        offered = tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ())
        chat = Chat(messages=tuple(message.to_template() for message in self.messages))
        return self.about(chat, Tools(offered=offered))


class EmbedBody(Kept):
    """POST /api/embed."""

    input: str | list[str] = Field(default_factory=list)
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbeddingsBody(Kept):
    """POST /api/embeddings, the older form."""

    prompt: str = ""


def _require_no_images(images: list[str] | None) -> None:
    if images:
        raise InvalidRequestError("images: they are not supported: models here take text")
