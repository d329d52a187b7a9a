"""Tokens become text in whole characters, and nothing is lost: in both kinds of tokenizers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sllm.core.detokenizer import Detokenizer
from sllm.core.errors import UnsupportedModelError
from sllm.core.token_bytes import TokenBytes
from sllm_store.groups.stored import open_stored

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd"  # One emoji of several characters.
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(f"aé漢字😀 \n{FAMILY}"))
)
EXAMPLES = ["", " ", "a", "Hello, world", "  two  spaces ", "漢字かな", "😀", FAMILY, "né\u0301e"]
EXAMPLES += ["\n\t\x00", "\ufffd"]


def _byte_level() -> Tokenizer:
    """GPT-2's kind with every byte, and tokens that end in the middle of characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = {"Ġh", "ðŁ", "ĺĢ", "ðŁĺ", "æ¼"}
    vocabulary = {token: id_ for id_, token in enumerate([*alphabet, *sorted(cut)])}
    merges = [("Ġ", "h"), ("ð", "Ł"), ("ĺ", "Ģ"), ("ðŁ", "ĺ"), ("æ", "¼")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """Llama 2's kind: a space before every text, and a token for each byte."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", "▁", *"abcdehlnorw", "▁h", "漢", "😀"]
    vocabulary = {token: id_ for id_, token in enumerate([*bytes_, *words])}
    model = models.BPE(
        vocab=vocabulary,
        merges=[("▁", "h")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _with_marks(tokenizer: Tokenizer) -> tuple[Tokenizer, TokenBytes]:
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer, TokenBytes.parse(json.loads(tokenizer.to_str()))


BYTE_LEVEL = _with_marks(_byte_level())
SENTENCEPIECE = _with_marks(_sentencepiece())
KINDS = pytest.mark.parametrize(
    ("tokenizer", "tokens"), [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"]
)


def _decode(tokens: TokenBytes, ids: list[int], **options: bool) -> tuple[str, list[str]]:
    detokenizer = Detokenizer(tokens, **options)
    parts = [*(detokenizer.feed(id_) for id_ in ids), detokenizer.flush()]
    return "".join(parts), parts


@KINDS
@pytest.mark.parametrize("text", EXAMPLES)
def test_a_text_comes_back(tokenizer: Tokenizer, tokens: TokenBytes, text: str) -> None:
    assert _decode(tokens, tokenizer.encode(text).ids)[0] == text


@KINDS
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_in_whole_characters(
    tokenizer: Tokenizer, tokens: TokenBytes, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found, parts = _decode(tokens, ids)
    assert found == tokenizer.decode(ids)
    assert parts[-1] == ""
    assert all("�" not in part for part in parts) or "�" in text


@given(ids=st.lists(st.integers(0, BYTE_LEVEL[0].get_vocab_size() - 1), max_size=24))
@settings(max_examples=100, deadline=None)
def test_any_tokens_become_what_the_library_makes_of_them(ids: list[int]) -> None:
    tokenizer, tokens = BYTE_LEVEL
    marks = {tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<tool>")}
    ids = [id_ for id_ in ids if id_ not in marks]  # There the library begins a new string.
    assert _decode(tokens, ids)[0] == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, SENTENCEPIECE[0].get_vocab_size() - 1), max_size=24))
@settings(max_examples=100, deadline=None)
def test_no_byte_is_lost_of_any_tokens(ids: list[int]) -> None:
    _, tokens = SENTENCEPIECE
    raw = b"".join(tokens.table[id_] for id_ in ids if id_ not in tokens.special)
    assert _decode(tokens, ids, begins=False)[0] == raw.decode("utf-8", errors="replace")


def test_marks_are_shown_only_when_asked_for() -> None:
    tokenizer, tokens = BYTE_LEVEL
    ids = tokenizer.encode("a<|end|><tool>").ids
    assert len(ids) == 3
    assert _decode(tokens, ids)[0] == "a<tool>"
    assert _decode(tokens, ids, shows_special=True)[0] == "a<|end|><tool>"


def test_a_text_that_goes_on_keeps_its_space() -> None:
    tokenizer, tokens = SENTENCEPIECE
    ids = tokenizer.encode("hello").ids
    assert _decode(tokens, ids)[0] == "hello"
    assert _decode(tokens, ids, begins=False)[0] == " hello"


def test_a_character_that_never_ends_is_replaced() -> None:
    tokenizer, tokens = BYTE_LEVEL
    found, parts = _decode(tokens, tokenizer.encode("😀").ids[:1])
    assert (found, parts) == ("�", ["", "�"])


def test_an_id_without_a_token_has_no_text() -> None:
    assert _decode(BYTE_LEVEL[1], [10**6])[0] == ""


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece"}, {"type": "CTC"}])
def test_another_kind_of_tokenizer_is_refused(decoder: dict[str, Any] | None) -> None:
    with pytest.raises(UnsupportedModelError, match="decoder"):
        TokenBytes.parse({"decoder": decoder, "model": {"vocab": {}}})


def test_smollm2_s_tokenizer(smollm2: Path) -> None:
    from sllm_store.convert.gguf_metadata import GgufMetadata
    from sllm_store.convert.gguf_tokenizer import build_tokenizer_files

    values = open_stored(smollm2).checkpoint.metadata
    files = build_tokenizer_files(GgufMetadata(path=smollm2, values=values))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    tokens = TokenBytes.parse(json.loads(files["tokenizer.json"]))

    @given(TEXTS)
    @settings(max_examples=100, deadline=None)
    def comes_back(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found, parts = _decode(tokens, ids)
        assert found == tokenizer.decode(ids, skip_special_tokens=True)
        assert parts[-1] == ""

    comes_back()
    for text in EXAMPLES:
        assert _decode(tokens, tokenizer.encode(text, add_special_tokens=False).ids)[0] == text
