"""Detokenizer: a text out of token ids, one by one, in whole characters."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm.core.token_bytes import TokenBytes


class Detokenizer:
    """Decodes one text. What it has returned, with `flush` at the end, is the whole text.

    Bytes that are no UTF-8 become U+FFFD, once it is certain that nothing will make them whole.
    Special tokens have no text unless `shows_special`. `begins`: whether this is the beginning of
    a text, rather than what follows a prompt.
    """

    def __init__(
        self, tokens: TokenBytes, *, shows_special: bool = False, begins: bool = True
    ) -> None:
        self._tokens = tokens
        self._shows_special = shows_special
        self._strips = begins and tokens.strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the characters that this token completes; often one word, sometimes nothing."""
        if token in self._tokens.special and not self._shows_special:
            return ""
        raw = self._tokens.table.get(token, b"")
        if self._strips and raw:
            self._strips = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """Return what is left of a character that was never completed: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)
