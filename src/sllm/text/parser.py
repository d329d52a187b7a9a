"""AnswerParser: an answer's text, in pieces, into content, thinking and calls of tools.

How the text is cut makes no difference. Only the marks of what was understood are left out, with
the white space beside them; a call that is malformed stays content, in every character.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from sllm.text.syntax import is_whole, parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm.text.model import TextModel

_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """Text that led to the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that is to be called."""

    id: str
    name: str
    arguments: dict[str, Any]


Part = Content | Thinking | ToolCall


class AnswerParser:
    """Parses one answer. `marks` are the tokens that its text has to show, special or not."""

    def __init__(
        self,
        model: TextModel,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool = False,
        prompt: str = "",
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """Prepare for an answer.

        tools: those that were offered; without any, nothing is a call. think: whether thoughts are
        told apart; else they are content. prompt: what the answer follows, as a template may have
        begun a thought there. new_id: names calls, instead of 'call_0' and so on.
        """
        self._syntax = model.syntax
        self._thought = model.thought
        self._schemas = parameters_of(tools)
        self._calls = bool(tools)
        self._new_id = new_id or map("call_{}".format, count()).__next__
        self._thinks = think
        self._held = ""  # Text that no state has decided about.
        self._gap = ""  # White space that may turn out to be beside a mark.
        self._after_mark = False
        self._opener = ""
        self._scanned = 0
        self._parts: list[Part] = []
        self._final = False
        self._state: Callable[[], bool] = self._begin
        if think and prompt.rstrip(_SPACE).endswith(self._thought.begin):
            self._enter_thought()

    @property
    def marks(self) -> frozenset[str]:
        """Return the tokens that have to be in the text, even if they are special."""
        thought = {self._thought.begin, self._thought.end} if self._thinks else set()
        calls = {self._syntax.begin, self._syntax.end, *self._syntax.marks}
        return frozenset(thought | (calls if self._calls else set())) - {""}

    def feed(self, text: str) -> list[Part]:
        """Return what is certain now that `text` has come."""
        self._held += text
        return self._run(final=False)

    def flush(self) -> list[Part]:
        """Return what is left, now that no more text comes."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Part]:
        self._final = final
        while self._state():
            pass
        if final and self._gap:
            self._add(self._gap, thinking=self._state == self._think)
            self._gap = ""
        parts, self._parts = self._parts, []
        return parts

    # The states: each consumes what it can of the held text, and returns whether another goes on.

    def _begin(self) -> bool:
        """At the beginning of an answer, or of what follows a thought."""
        text = self._held.lstrip(_SPACE)
        whole = self._calls and self._syntax.whole
        marks = [self._thought.begin] if self._thinks and not self._after_mark else []
        marks += [self._syntax.begin, "{"] if whole else []
        for mark in marks:
            if text.startswith(mark):
                break
            if mark.startswith(text) and not self._final:
                return False
        else:
            self._state = self._write
            return True
        if mark == self._thought.begin:
            self._held = text.removeprefix(mark)
            self._enter_thought()
            return True
        self._opener = self._held[: self._held.index(mark)] + ("" if mark == "{" else mark)
        self._held = self._held[len(self._opener) :]
        self._state = self._call
        return True

    def _think(self) -> bool:
        at = self._held.find(self._thought.end)
        if at < 0:
            self._show_but_for(self._thought.end)
            return False
        self._show(self._held[:at], thinking=True)
        self._held = self._held[at + len(self._thought.end) :]
        self._pass_mark()
        self._state = self._begin
        return True

    def _write(self) -> bool:
        mark = self._syntax.begin if self._calls and not self._syntax.whole else ""
        at = self._held.find(mark) if mark else -1
        if at < 0:
            self._show_but_for(mark)
            return False
        self._show(self._held[:at])
        self._opener = mark
        self._held = self._held[at + len(mark) :]
        self._scanned = 0
        self._state = self._call
        return True

    def _call(self) -> bool:
        """Inside of a call: wait until it is whole, and read it."""
        body, after = self._find_body()
        if body is None:
            return False
        calls = self._syntax.read(body, self._schemas)
        if calls is None:
            self._show(self._opener)  # And what follows it is looked at as any text.
        else:
            self._parts += [ToolCall(self._new_id(), call.name, call.arguments) for call in calls]
            self._held = self._held[after:]
            self._pass_mark()
        self._state = self._write
        return True

    def _find_body(self) -> tuple[str | None, int]:
        """Return a call's text and where it ends with its mark; None while it is not there."""
        end = self._syntax.end or self._syntax.begin
        while not self._syntax.whole and (at := self._held.find(end, self._scanned)) >= 0:
            if is_whole(self._held[:at]):
                return self._held[:at], at + len(self._syntax.end)
            self._scanned = at + 1
        if not self._final:
            self._scanned = max(self._scanned, len(self._held) - len(end) + 1)
            return None, 0
        # No more comes: without a mark that ends it, a call ends with the answer.
        return ("" if self._syntax.end else self._held), len(self._held)

    # What becomes of text.

    def _enter_thought(self) -> None:
        self._pass_mark()
        self._state = self._think

    def _pass_mark(self) -> None:
        """Drop the white space before a mark, and that which is to come after it."""
        self._gap = ""
        self._after_mark = True

    def _show_but_for(self, mark: str) -> None:
        """Show what is held, but for an end that may become a mark."""
        thinking = self._state == self._think
        kept = 0 if self._final else _begun(self._held, mark)
        cut = len(self._held) - kept
        self._show(self._held[:cut], thinking=thinking)
        self._held = self._held[cut:]

    def _show(self, text: str, *, thinking: bool = False) -> None:
        text = self._gap + (text.lstrip(_SPACE) if self._after_mark else text)
        shown = text.rstrip(_SPACE) if thinking or self._calls else text
        self._gap = text[len(shown) :]
        if shown:
            self._after_mark = False
            self._add(shown, thinking=thinking)

    def _add(self, text: str, *, thinking: bool) -> None:
        kind = Thinking if thinking else Content
        last = self._parts[-1] if self._parts else None
        if isinstance(last, Thinking | Content) and isinstance(last, kind):
            self._parts[-1] = kind(last.text + text)
        else:
            self._parts.append(kind(text))


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    longest = min(len(mark) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0)
