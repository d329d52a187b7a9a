"""TextStream: an answer's tokens as text that can be shown, each with what is known about it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sllm.core.detokenizer import Detokenizer
from sllm.core.stops import StopScanner

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sllm.core.requests import Choice
    from sllm.text.model import TextModel


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A token with the logarithm of its probability; raw: its bytes, of which text is a reading.

    logprob: None for the first token of a prompt, before which there is nothing.
    """

    token: int
    text: str
    raw: bytes
    logprob: float | None
    top: tuple[TokenReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """Text that can be shown now, and the tokens that are out with it, if they were reported."""

    text: str = ""
    tokens: tuple[TokenReport, ...] = ()


class TextStream:
    """Decodes one answer, up to a stop text.

    marks: special tokens that have a text here, as AnswerParser.marks tells. begins: whether the
    answer is a text of its own, rather than the rest of one that the prompt began. Tokens of
    `model.ends` have no text and are not reported, unless `reports_ends`.
    """

    def __init__(
        self,
        model: TextModel,
        stop: Sequence[str] = (),
        *,
        marks: Collection[str] = (),
        begins: bool = True,
        reports_ends: bool = False,
    ) -> None:
        table = model.token_bytes
        wanted = {mark.encode() for mark in marks}
        shown = frozenset(token for token in table.special if table.table[token] in wanted)
        tokens = replace(table, special=table.special - shown)
        self._ends = model.ends - shown
        self._unreported = frozenset() if reports_ends else self._ends
        self._table = table.table
        self._detokenizer = Detokenizer(tokens, begins=begins)
        self._scanner = StopScanner(stop)
        self._decoded = 0  # Characters so far, of which this many were shown.
        self._shown = 0
        self._waiting: deque[tuple[int, TokenReport]] = deque()  # And where each one's text begins.

    @property
    def stopped(self) -> str | None:
        """Return the stop text that has ended it, if one has."""
        return self._scanner.stopped

    def feed(self, choice: Choice) -> Shown:
        """Return what can be shown now that this token has come; nothing once it is stopped."""
        if self.stopped is not None:
            return Shown()
        text = "" if choice.token in self._ends else self._detokenizer.feed(choice.token)
        if choice.logprob is not None and choice.token not in self._unreported:
            self._waiting.append((self._decoded, self.report(choice)))
        return self._pass(self._scanner.feed(text), decoded=len(text), final=False)

    def flush(self) -> Shown:
        """Return what is left, now that no more tokens come."""
        rest = self._detokenizer.flush()
        text = self._scanner.feed(rest) + self._scanner.flush()
        return self._pass(text, decoded=len(rest), final=True)

    def _pass(self, text: str, *, decoded: int, final: bool) -> Shown:
        self._decoded += decoded
        self._shown += len(text)
        whole = self._shown == self._decoded
        tokens = []
        while self._waiting and (self._waiting[0][0] < self._shown or whole):
            tokens.append(self._waiting.popleft()[1])
        if self.stopped is not None or final:
            self._waiting.clear()
        return Shown(text, tuple(tokens))

    def report(self, choice: Choice) -> TokenReport:
        """Return what is known of a token, which need not be of the answer."""
        top = tuple(self._entry(token, logprob) for token, logprob in choice.top)
        return replace(self._entry(choice.token, choice.logprob), top=top)

    def _entry(self, token: int, logprob: float | None) -> TokenReport:
        raw = self._table.get(token, b"")
        return TokenReport(token, raw.decode(errors="replace"), raw, logprob)
