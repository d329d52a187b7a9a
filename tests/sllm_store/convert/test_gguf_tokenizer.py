"""Tokenizers out of GGUF: golden ids of llama.cpp's vocabularies, and small ones made here."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.gguf_metadata import GgufMetadata
from sllm_store.convert.gguf_tokenizer import build_tokenizer_files
from sllm_store.errors import InvalidCheckpointError

ROOT = Path(__file__).parents[3]
VOCABULARIES = Path(os.environ.get("SLLM_VOCABULARIES") or ROOT / ".cache/llama-vocab")
WITH_GOLDEN_IDS = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]
WITHOUT_GOLDEN_IDS = ["aquila", "baichuan", "gpt-neox"]
LOSSY = {"bert-bge"}  # It lowers case and drops spaces.

HELLO: dict[str, object] = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "h", "i", "\u0120", "hi", "\u0120hi", "<tool>"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 4],
    "tokenizer.ggml.merges": ["h i", "\u0120 hi"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
WORDS: dict[str, object] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        "<unk>",
        "<s>",
        "</s>",
        "<0x21>",
        "\u2581",
        "a",
        "b",
        "ab",
        "\u2581ab",
    ],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, -2.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def build(values: dict[str, object], **changes: object) -> dict[str, str]:
    changed = {key: value for key, value in {**values, **changes}.items() if value is not None}
    return build_tokenizer_files(GgufMetadata(path=Path("model.gguf"), values=changed))


def tokenizer_of(files: dict[str, str]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"])


def with_key(key: str, value: object) -> dict[str, object]:
    return {**HELLO, f"tokenizer.ggml.{key}": value}


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    """Build the tokenizer of one of llama.cpp's vocabularies."""
    if not VOCABULARIES.is_dir():
        pytest.skip(f"no vocabularies in {VOCABULARIES}: run python -m tests.fetch_vocabularies")

    @functools.cache
    def load(name: str) -> tuple[Tokenizer, dict[str, str]]:
        checkpoint = open_checkpoint(VOCABULARIES / f"ggml-vocab-{name}.gguf")
        files = build_tokenizer_files(
            GgufMetadata(path=checkpoint.path, values=checkpoint.metadata)
        )
        return tokenizer_of(files), files

    return load


def golden(name: str) -> list[tuple[str, list[int]]]:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    pairs = [
        (text, [int(word) for word in line.split()])
        for text, line in zip(texts, lines, strict=False)
    ]
    assert len(pairs) >= 46
    return pairs


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode token by token, as an answer is shown while it is made."""
    stream = DecodeStream(skip_special_tokens=False)
    return "".join(stream.step(tokenizer, id_) or "" for id_ in ids)


@pytest.mark.parametrize("name", WITH_GOLDEN_IDS)
def test_golden_ids_of_llama_cpp_are_met_and_decode_to_the_text(name: str, vocabulary: Any) -> None:
    tokenizer, _ = vocabulary(name)
    for text, ids in golden(name):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
        if name not in LOSSY:
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
            assert streamed(tokenizer, ids) == text


@pytest.mark.parametrize("name", WITHOUT_GOLDEN_IDS)
def test_vocabularies_without_golden_ids_are_lossless(name: str, vocabulary: Any) -> None:
    tokenizer, _ = vocabulary(name)
    for text, _ in golden("gpt-2"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "command-r", "bert-bge", "qwen2"])
def test_transformers_reads_the_files_and_agrees(
    name: str, vocabulary: Any, tmp_path: Path
) -> None:
    tokenizer, files = vocabulary(name)
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in golden(name):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids


def test_a_unigram_vocabulary_is_refused_because_nothing_here_can_judge_it(
    vocabulary: Any,
) -> None:
    with pytest.raises(InvalidCheckpointError, match="'t5' cannot be converted"):
        vocabulary("nomic-bert-moe")


def test_merges_make_words_and_added_tokens_are_found_whole() -> None:
    tokenizer = tokenizer_of(build(HELLO))
    assert tokenizer.encode("hi hi<tool>h</s>").ids == [5, 6, 7, 2, 1]
    assert tokenizer.decode([5, 6, 7, 2, 1]) == "hi hi<tool>h"
    assert tokenizer.decode([5, 1], skip_special_tokens=False) == "hi</s>"


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, [5]),
        ({"add_bos_token": True, "add_eos_token": False}, [0, 5]),
        ({"add_bos_token": False, "add_eos_token": True}, [5, 1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 5, 1]),
    ],
)
def test_start_and_end_tokens_come_as_the_file_says(keys: dict[str, bool], ids: list[int]) -> None:
    files = build(HELLO, **{f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert tokenizer_of(files).encode("hi").ids == ids
    config = json.loads(files["tokenizer_config.json"])
    for key in ("add_bos_token", "add_eos_token"):
        assert config[key] == keys.get(key, False)


def test_llama_3_starts_with_its_token_although_the_file_does_not_say() -> None:
    assert tokenizer_of(build(with_key("pre", "llama-bpe"))).encode("hi").ids == [0, 5]


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = tokenizer_of(build(WORDS))
    assert tokenizer.encode("ab ab!").ids == [1, 8, 8, 3]
    assert tokenizer.decode([1, 8, 8, 3]) == "ab ab!"


def test_sentencepiece_without_the_prefix_starts_with_the_text() -> None:
    tokenizer = tokenizer_of(build(WORDS, **{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.encode("ab ab").ids == [1, 7, 8]
    assert tokenizer.decode([7, 8]) == "ab ab"


def test_chat_templates_become_files_and_names_stay_inside_the_directory() -> None:
    templates = {
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.rag": "{{ documents }}",
        "tokenizer.chat_template.../../evil": "{{ evil }}",
    }
    files = build(HELLO, **templates)
    assert files["chat_template.jinja"] == "{{ messages }}"
    assert files["additional_chat_templates/rag.jinja"] == "{{ documents }}"
    assert set(files) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    }
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "rwkv", "tokenizer.ggml.model 'rwkv' cannot be converted"),
        ("pre", "new-model", "tokenizer.ggml.pre 'new-model' is not known"),
        ("token_type", [3, 3], "token_type has 2 entries for 8 tokens"),
        ("bos_token_id", 8, "bos_token_id is 8, but there are 8 tokens"),
        ("merges", ["hi"], r"merges\[0\] is 'hi'"),
        ("tokens", [1, 2], "tokens is .* expected a list of strings"),
        ("add_bos_token", "yes", "add_bos_token is 'yes', expected a boolean"),
    ],
)
def test_a_vocabulary_that_cannot_be_trusted_is_refused_by_key(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(InvalidCheckpointError, match=rf"model\.gguf: .*{message}"):
        build(with_key(key, value))


def test_scores_must_be_as_many_as_tokens() -> None:
    with pytest.raises(InvalidCheckpointError, match="scores has 1 entries for 9 tokens"):
        build(WORDS, **{"tokenizer.ggml.scores": [0.0]})
