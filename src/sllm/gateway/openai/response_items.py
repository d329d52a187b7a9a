"""Output items of one response as they are written; whatever changes is an event of its stream."""

from __future__ import annotations

import json
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

from sllm.text.parser import Content, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm.text.parser import Part, Thinking
    from sllm.text.stream import TokenReport

Event = dict[str, Any]


class Output:
    """The items: messages, thoughts, and calls of tools. Events lack their numbers."""

    def __init__(self) -> None:
        """Begin with none."""
        self.items: list[dict[str, Any]] = []
        self._kind = ""  # Of the parts of the item that is being written, if there is one.
        self._text: list[str] = []
        self._logprobs: list[TokenReport] = []

    def feed(self, parts: Sequence[Part], said: Sequence[TokenReport]) -> Iterator[Event]:
        """Write what is new; said: the tokens of all contents in it, if they were reported."""
        waiting = deque(said)
        for part in parts:
            if isinstance(part, ToolCall):
                yield from self.close()
                yield from self._call(part)
            else:
                yield from self._write(part, _tokens_of(part, waiting))

    def close(self, status: str = "completed") -> Iterator[Event]:
        """End the item that is being written, if there is one."""
        if not self._kind:
            return
        text = "".join(self._text)
        part = _part(self._kind, text, self._logprobs)
        item = self.items[-1]
        here = self._here(content_index=0)
        logprobs = _reported(self._kind, self._logprobs, raw=False)
        yield {"type": f"response.{self._kind}.done", **here, "text": text, **logprobs}
        yield {"type": "response.content_part.done", **here, "part": part}
        item |= {"content": [part], "status": status}
        self._kind = ""
        self._text = []
        self._logprobs = []
        yield self._told("response.output_item.done", item)

    def _write(self, part: Content | Thinking, tokens: list[TokenReport]) -> Iterator[Event]:
        kind = "output_text" if isinstance(part, Content) else "reasoning_text"
        if kind != self._kind:
            yield from self.close()
            item = _message() if kind == "output_text" else _thought()
            self.items.append(item)
            self._kind = kind
            yield self._told("response.output_item.added", item)
            empty = _part(kind, "", [])
            here = self._here(content_index=0)
            yield {"type": "response.content_part.added", **here, "part": empty}
        self._text.append(part.text)
        self._logprobs += tokens
        logprobs = _reported(kind, tokens, raw=False)
        here = self._here(content_index=0)
        yield {"type": f"response.{kind}.delta", **here, "delta": part.text, **logprobs}

    def _call(self, call: ToolCall) -> Iterator[Event]:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {
            "id": _id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        self.items.append(item)
        yield self._told("response.output_item.added", item)
        event = "response.function_call_arguments"
        yield {"type": f"{event}.delta", **self._here(), "delta": arguments}
        named = {"name": call.name, "arguments": arguments}
        yield {"type": f"{event}.done", **self._here(), **named}
        item |= {"arguments": arguments, "status": "completed"}
        yield self._told("response.output_item.done", item)

    def _here(self, **more: int) -> dict[str, Any]:
        """Return which item an event is about: the last."""
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more}

    def _told(self, kind: str, item: dict[str, Any]) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": dict(item)}


def _message() -> dict[str, Any]:
    head = {"id": _id("msg"), "type": "message", "role": "assistant"}
    return {**head, "status": "in_progress", "content": []}


def _thought() -> dict[str, Any]:
    head = {"id": _id("rs"), "type": "reasoning", "summary": []}
    return {**head, "status": "in_progress", "content": []}


def _part(kind: str, text: str, tokens: Sequence[TokenReport]) -> dict[str, Any]:
    more: Event = {"annotations": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more, **_reported(kind, tokens, raw=True)}


def _tokens_of(part: Content | Thinking, waiting: deque[TokenReport]) -> list[TokenReport]:
    """Return the tokens of a content, which are as many as it has bytes, out of those waiting."""
    left, found = len(part.text.encode()) if isinstance(part, Content) else 0, []
    while left > 0 and waiting:
        found.append(waiting.popleft())
        left -= len(found[-1].raw)
    return found


def _reported(kind: str, tokens: Sequence[TokenReport], *, raw: bool) -> Event:
    """Return what is told of tokens, in the parts of items with their bytes; of text alone."""

    def told(one: TokenReport) -> Event:
        more = {"bytes": list(one.raw)} if raw else {}
        return {"token": one.text, "logprob": one.logprob, **more}

    if kind != "output_text":
        return {}
    return {
        "logprobs": [
            {**told(one), "top_logprobs": [told(other) for other in one.top]} for one in tokens
        ]
    }


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
