"""AnswerReader: an answer's tokens, as they come, into text, thoughts, calls and probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sllm.core.detokenizer import Detokenizer
from sllm.core.stops import StopScanner
from sllm.text.parser import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.requests import Choice
    from sllm.core.token_bytes import TokenBytes
    from sllm.text.parser import AnswerParser, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token, how likely it was, and the likeliest ones in its place, of which it may be one."""

    raw: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """Return the token's text, as far as it is text by itself."""
        return self.raw.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What some tokens brought."""

    parts: tuple[Part, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerReader:
    """Reads one answer. `stopped` once a stop text has ended it: then nothing more is shown."""

    def __init__(
        self,
        tokens: TokenBytes,
        *,
        ends: frozenset[int],
        stop: Sequence[str],
        parser: AnswerParser | None = None,
    ) -> None:
        """Without a parser, all text is content."""
        marks = {mark.encode() for mark in parser.marks} if parser else set()
        marked = {token for token in tokens.special if tokens.table.get(token) in marks}
        self._tokens = replace(tokens, special=tokens.special - marked)
        self._detokenizer = Detokenizer(self._tokens, begins=False)
        self._stops = StopScanner(stop)
        self._ends = ends
        self._parser = parser
        self._fed = 0  # Characters of all tokens, and of those that can be shown.
        self._shown = 0
        self._waiting: list[tuple[int, int, TokenLogprob]] = []

    @property
    def stopped(self) -> bool:
        """Return whether a stop text has come."""
        return self._stops.stopped is not None

    def feed(self, choice: Choice) -> Shown:
        """Return what is certain now that a token has come."""
        text = "" if choice.token in self._ends else self._detokenizer.feed(choice.token)
        if choice.logprob is not None and choice.token not in self._ends:
            place = (self._fed, self._fed + len(text), self._told(choice, choice.logprob))
            self._waiting.append(place)
        return self._show(text)

    def flush(self) -> Shown:
        """Return what is left, now that no more tokens come."""
        last = self._show("" if self.stopped else self._detokenizer.flush())
        rest = self._stops.flush()
        self._shown += len(rest)
        parts = [*last.parts, *self._parsed(rest)]
        if self._parser:
            parts += self._parser.flush()
        held = [] if self.stopped else self._waiting
        return Shown(parts=tuple(parts), logprobs=(*last.logprobs, *(told for *_, told in held)))

    def _show(self, text: str) -> Shown:
        self._fed += len(text)
        shown = self._stops.feed(text)
        self._shown += len(shown)
        return Shown(parts=tuple(self._parsed(shown)), logprobs=self._due())

    def _parsed(self, text: str) -> list[Part]:
        if not text:
            return []
        return self._parser.feed(text) if self._parser else [Content(text)]

    def _due(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens whose text is out; of one that a stop text cut, the beginning is."""
        due = []
        while self._waiting:
            begin, end, told = self._waiting[0]
            if end > self._shown and not (self.stopped and begin < self._shown):
                break
            due.append(told)
            del self._waiting[0]
        return tuple(due)

    def _told(self, choice: Choice, logprob: float) -> TokenLogprob:
        table = self._tokens.table
        top = tuple(TokenLogprob(raw=table.get(token, b""), logprob=p) for token, p in choice.top)
        return TokenLogprob(raw=table.get(choice.token, b""), logprob=logprob, top=top)
