"""TokenBytes: the bytes of every token, out of tokenizer.json, for tokenizers made of bytes.

That is GPT-2's kind (each byte a printable character) and SentencePiece's with byte fallback
(spaces as U+2581, '<0x0A>' for a byte). A text is then the UTF-8 of its tokens' bytes end to end,
whichever token a character is cut in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sllm.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """The bytes of each token by its id; an id without a token has none.

    special: ids that mark rather than say something. strips_space: whether a text loses the space
    that it begins with, which such a tokenizer adds before every text.
    """

    table: Mapping[int, bytes]
    special: frozenset[int]
    strips_space: bool

    @classmethod
    def parse(cls, tokenizer: Mapping[str, Any]) -> TokenBytes:
        """Return the table of a tokenizer.json; raise UnsupportedModelError for another kind."""
        decoder = tokenizer.get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        kinds = [step.get("type") for step in steps]
        strips = any(
            step.get("type") == "Strip" and step.get("content") == " " and step.get("start")
            for step in steps
        )
        if "ByteLevel" in kinds:
            read: Callable[[str], bytes] = _read_byte_level
        elif "ByteFallback" in kinds or "Metaspace" in kinds:
            read = _read_sentencepiece
            strips = strips or _prepends(steps)
        else:
            raise UnsupportedModelError(
                f"tokenizer.json: a decoder of {kinds} is not known (known: ByteLevel, "
                "ByteFallback, Metaspace)"
            )
        table = {id_: read(token) for token, id_ in _vocabulary(tokenizer["model"]).items()}
        special = set()
        for added in tokenizer.get("added_tokens", ()):
            table[added["id"]] = added["content"].encode()
            if added.get("special"):
                special.add(added["id"])
        return cls(table=table, special=frozenset(special), strips_space=strips)


def _vocabulary(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram has pairs of a token and its score.
        return {token: id_ for id_, (token, _) in enumerate(vocabulary)}
    found: Mapping[str, int] = vocabulary
    return found


def _prepends(steps: list[Mapping[str, Any]]) -> bool:
    return any(
        step.get("type") == "Metaspace"
        and (step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
        for step in steps
    )


def _read_byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:  # It has a character that is no byte's.
        return token.encode()


def _read_sentencepiece(token: str) -> bytes:
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _byte_characters() -> dict[int, int]:
    """Return GPT-2's characters for bytes: printable ones are themselves, others follow U+0100.

    The unprintable ones stand for no byte, and are made into what is none either.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **dict.fromkeys(others, 256),
        **{256 + place: byte for place, byte in enumerate(others)},
    }


_BYTES = _byte_characters()
