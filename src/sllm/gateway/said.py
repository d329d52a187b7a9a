"""SaidTokens: the tokens of what an answer says, without those of thoughts, calls and marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.text.parser import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.text.parser import Part
    from sllm.text.stream import TokenReport


class SaidTokens:
    """Matches reports of tokens with the parts of an answer that a parser makes of their text."""

    def __init__(self) -> None:
        """Begin with none."""
        self._waiting: list[TokenReport] = []

    def feed(self, tokens: Sequence[TokenReport]) -> None:
        """Take the tokens of a text before it is parsed."""
        self._waiting += tokens

    def take(self, parts: Sequence[Part]) -> list[TokenReport]:
        """Return the tokens of the contents among the parts that the text so far brought.

        Those are the last ones, as many as the contents have bytes; before them are marks.
        """
        if not parts:
            return []
        waiting, self._waiting = self._waiting, []
        left = sum(len(part.text.encode()) for part in parts if isinstance(part, Content))
        first = len(waiting)
        while first and left > 0:
            first -= 1
            left -= len(waiting[first].raw)
        return waiting[first:]
