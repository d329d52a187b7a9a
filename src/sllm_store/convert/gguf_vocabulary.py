"""The vocabulary of a GGUF: tokens, their kinds and scores, merges, and the special ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from sllm_store.convert.gguf_metadata import GgufMetadata

_SPECIAL_LOOK = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # The key is spelt so.
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


class TokenKind(IntEnum):
    """GGUF's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """`tokens[id]`, as text; `roles` maps bos, eos, unk, pad, sep, cls and mask to ids."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    roles: dict[str, int]

    def added(self) -> list[int]:
        """Return the ids that are found in a text as a whole, before anything else happens."""
        roles = {id_ for id_ in self.roles.values() if _SPECIAL_LOOK.fullmatch(self.tokens[id_])}
        kinds = (TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNKNOWN)
        return [id_ for id_, kind in enumerate(self.kinds) if kind in kinds or id_ in roles]

    def is_special(self, id_: int) -> bool:
        """Return whether decoding may skip the token."""
        return self.kinds[id_] != TokenKind.USER_DEFINED

    def ids(self) -> dict[str, int]:
        """Return token to id; of equal tokens the first one counts."""
        found: dict[str, int] = {}
        for id_, token in enumerate(self.tokens):
            found.setdefault(token, id_)
        return found


def read_vocabulary(metadata: GgufMetadata) -> Vocabulary:
    """Return the vocabulary; raise InvalidCheckpointError naming the key that does not fit."""
    tokens = tuple(metadata.texts("tokenizer.ggml.tokens"))
    kinds: tuple[int, ...] = (TokenKind.NORMAL,) * len(tokens)
    if metadata.has("tokenizer.ggml.token_type"):
        kinds = tuple(metadata.integers("tokenizer.ggml.token_type"))
    if len(kinds) != len(tokens):
        raise InvalidCheckpointError(
            f"{metadata.path}: tokenizer.ggml.token_type has {len(kinds)} entries for "
            f"{len(tokens)} tokens"
        )
    roles = {role: metadata.integer(key) for role, key in _ROLES.items() if metadata.has(key)}
    for role, id_ in roles.items():
        if not 0 <= id_ < len(tokens):
            raise InvalidCheckpointError(
                f"{metadata.path}: {_ROLES[role]} is {id_}, but there are {len(tokens)} tokens"
            )
    return Vocabulary(tokens=tokens, kinds=kinds, roles=roles)


def read_scores(metadata: GgufMetadata, vocabulary: Vocabulary) -> list[float]:
    """Return a score per token; raise InvalidCheckpointError when there are too many or few."""
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        raise InvalidCheckpointError(
            f"{metadata.path}: tokenizer.ggml.scores has {len(scores)} entries for "
            f"{len(vocabulary.tokens)} tokens"
        )
    return scores


def read_merges(metadata: GgufMetadata) -> list[tuple[str, str]]:
    """Return the merges, best first. A merge is two tokens around its first inner space."""
    merges = []
    for index, merge in enumerate(metadata.texts("tokenizer.ggml.merges")):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise InvalidCheckpointError(
                f"{metadata.path}: tokenizer.ggml.merges[{index}] is {merge!r}, which is not two "
                "tokens around a space"
            )
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges
