"""Asked: what a client wants, in one form, whichever API it came by.

Both APIs are turned into this, and everything after it is one path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sllm.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "reasoning_text", "refusal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages in the form of chat templates; those of the model's maker come before them.

    system: instead of the model's. context: ids of an earlier conversation that go before.
    template: instead of the model's. single: one text, which a model without a template continues.
    """

    messages: tuple[Mapping[str, Any], ...]
    system: str | None = None
    context: tuple[int, ...] = ()
    template: str | None = None
    single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A text that is to be continued as it is, or ids of one; with `suffix`, filled in.

    echo: whether the answer begins with it; alone: and ends with it.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    suffix: str = ""
    echo: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Tools that are offered. choice: "auto", "required", or the name of the one to call."""

    offered: tuple[Mapping[str, Any], ...] = ()
    choice: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer that a client wants.

    options: of sllm.gateway.options, as given; `defaults` are the API's, which the model's own
    parameters go before. format: "json", a JSON schema, or None. think: None for what the model
    does by itself. truncate: whether the oldest messages go if there are too many. cut:
    whether the middle goes of a prompt that is too long even so. keep_alive_s: None for the
    server's.
    """

    model: str
    prompt: Chat | Plain
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    format: Literal["json"] | Mapping[str, Any] | None = None
    tools: Tools = field(default_factory=Tools)
    think: bool | None = None
    truncate: bool = False
    cut: bool = False
    keep_alive_s: float | None = None


def text_of(content: Any, *, field_name: str) -> str:
    """Return the text of a message's content: a string, or parts that are all text.

    Raises InvalidRequestError for pictures and sounds, which no model here takes.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    parts: Sequence[Mapping[str, Any]] = content
    for part in parts:
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            raise InvalidRequestError(
                f"{field_name}: a part of type {kind!r} is not supported: models here take text"
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequestError(f"{field_name}: a part of type {kind!r} has no text")
        texts.append(text)
    return "".join(texts)
