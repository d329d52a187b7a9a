"""One builder per `tokenizer.ggml.model`: the parts of tokenizer.json that depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sllm_store.convert.gguf_pre_tokenizer import PRE_TOKENIZERS
from sllm_store.convert.gguf_vocabulary import TokenKind, read_merges, read_scores
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm_store.convert.gguf_metadata import GgufMetadata
    from sllm_store.convert.gguf_vocabulary import Vocabulary

_SPACE = "\u2581"  # What SentencePiece writes for a space.
_CONTINUES = "##"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """Parts of tokenizer.json, in its own terms, and the ids that go around a text.

    before_second: whether `before` also comes before the second text of a pair.
    """

    model: dict[str, Any]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    before_second: bool = True


def build_model(metadata: GgufMetadata, vocabulary: Vocabulary) -> ModelParts:
    """Return the parts for the file's tokenizer; raise InvalidCheckpointError if it is unknown."""
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        raise InvalidCheckpointError(
            f"{metadata.path}: tokenizer.ggml.model {kind!r} cannot be converted "
            f"(known: {', '.join(_BUILDERS)})"
        )
    return _BUILDERS[kind](metadata, vocabulary)


def _byte_level(metadata: GgufMetadata, vocabulary: Vocabulary) -> ModelParts:
    """Build GPT-2's kind: bytes as printable characters, words cut by expressions, BPE."""
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise InvalidCheckpointError(
            f"{metadata.path}: tokenizer.ggml.pre {name!r} is not known, and guessing would cut "
            f"words wrongly (known: {', '.join(sorted(PRE_TOKENIZERS))})"
        )
    pre_tokenizer = PRE_TOKENIZERS[name]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [_split(expression) for expression in pre_tokenizer.expressions]
    return ModelParts(
        model=_bpe(vocabulary, read_merges(metadata), whole_words=pre_tokenizer.whole_words),
        normalizer=None,
        pre_tokenizer=_sequence([*splits, {"type": "ByteLevel", **byte_level}], "pretokenizers"),
        decoder={"type": "ByteLevel", **byte_level},
        before=_start(metadata, vocabulary, habit=pre_tokenizer.add_bos),
        after=_end(metadata, vocabulary),
    )


def _sentencepiece(metadata: GgufMetadata, vocabulary: Vocabulary) -> ModelParts:
    """Build Llama 2's kind: no words, BPE over characters by score, bytes for what is missing."""
    merges = merges_by_score(vocabulary, read_scores(metadata, vocabulary))
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", default=True)
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    steps.append(_replace(" ", _SPACE))
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return ModelParts(
        model=_bpe(vocabulary, merges, byte_fallback=True),
        normalizer=_sequence(steps, "normalizers"),
        pre_tokenizer=None,
        decoder=_raw_decoder(strip),
        before=_start(metadata, vocabulary, habit=True),
        after=_end(metadata, vocabulary),
    )


def _gemma4(metadata: GgufMetadata, vocabulary: Vocabulary) -> ModelParts:
    """Build Gemma 4's kind: as SentencePiece's, but with merges of its own and cut at newlines."""
    return ModelParts(
        model=_bpe(vocabulary, read_merges(metadata), byte_fallback=True),
        normalizer=_replace(" ", _SPACE),
        pre_tokenizer=_split(r"[^\n]+|[\n]+"),
        decoder=_raw_decoder([]),
        before=_start(metadata, vocabulary, habit=True),
        after=_end(metadata, vocabulary),
    )


def _wordpiece(metadata: GgufMetadata, vocabulary: Vocabulary) -> ModelParts:
    """Build BERT's kind. The file marks starts of words; the library marks what continues one."""
    unknown = vocabulary.tokens[vocabulary.roles["unk"]] if "unk" in vocabulary.roles else "[UNK]"
    lowercase = metadata.flag("tokenizer.ggml.normalizer.lowercase", default=True)
    added = set(vocabulary.added())
    ids = {
        token if id_ in added else _unmark(token): id_
        for id_, token in enumerate(vocabulary.tokens)
    }
    return ModelParts(
        model={
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": _CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": metadata.flag(
                "tokenizer.ggml.normalizer.strip_accents", default=lowercase
            ),
            "lowercase": lowercase,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": _CONTINUES, "cleanup": False},
        before=_ids_of(vocabulary, "cls"),
        after=_ids_of(vocabulary, "sep"),
        before_second=False,
    )


def _unmark(token: str) -> str:
    return token[1:] if token.startswith(_SPACE) else f"{_CONTINUES}{token}"


_BUILDERS: dict[str, Callable[[GgufMetadata, Vocabulary], ModelParts]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma4": _gemma4,
    "bert": _wordpiece,
}


def merges_by_score(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece's scores imply: all ways to a token, best first."""
    usable = {
        token: id_
        for id_, token in enumerate(vocabulary.tokens)
        if vocabulary.kinds[id_] in (TokenKind.NORMAL, TokenKind.USER_DEFINED)
    }
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, id_ in usable.items():
        for cut in range(1, len(token)):
            left, right = usable.get(token[:cut]), usable.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[id_], left, right, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _bpe(
    vocabulary: Vocabulary,
    merges: Sequence[tuple[str, str]],
    *,
    whole_words: bool = False,
    byte_fallback: bool = False,
) -> dict[str, Any]:
    ids = vocabulary.ids()
    unknown = vocabulary.tokens[vocabulary.roles["unk"]] if "unk" in vocabulary.roles else None
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown if byte_fallback else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": whole_words,
        "vocab": ids,
        "merges": [
            [left, right]
            for left, right in merges
            if left in ids and right in ids and left + right in ids
        ],
    }


def _start(metadata: GgufMetadata, vocabulary: Vocabulary, *, habit: bool) -> tuple[int, ...]:
    """Return what starts a text, by the file or else by the habit of its kind."""
    wanted = metadata.flag("tokenizer.ggml.add_bos_token", default=habit)
    return _ids_of(vocabulary, "bos") if wanted else ()


def _end(metadata: GgufMetadata, vocabulary: Vocabulary) -> tuple[int, ...]:
    wanted = metadata.flag("tokenizer.ggml.add_eos_token", default=False)
    return _ids_of(vocabulary, "eos") if wanted else ()


def _ids_of(vocabulary: Vocabulary, role: str) -> tuple[int, ...]:
    return (vocabulary.roles[role],) if role in vocabulary.roles else ()


def _split(expression: str) -> dict[str, Any]:
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _sequence(parts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return parts[0] if len(parts) == 1 else {"type": "Sequence", name: parts}


def _raw_decoder(more: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *more]
    return {"type": "Sequence", "decoders": steps}
