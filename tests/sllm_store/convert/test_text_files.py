"""The files that a tokenizer, its templates and its ends are in, whatever the format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from gguf import GGUFWriter

from sllm_store.convert.text_files import read_text_files
from sllm_store.errors import CheckpointNotFoundError, InvalidCheckpointError
from tests.sllm_store.convert.conftest import add_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_directory_s_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    texts = {
        "tokenizer.json": "{}",
        "chat_template.jinja": "é",
        "additional_chat_templates/tool_use.jinja": "tools",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "README.md").write_text("not about text")
    assert read_text_files(tmp_path) == texts


def test_a_gguf_s_files_are_made_of_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer: Any = GGUFWriter(path, "llama")
    add_tokenizer(writer)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = read_text_files(path)
    assert texts["chat_template.jinja"] == "{{ messages }}"
    assert json.loads(texts["generation_config.json"])["eos_token_id"] == 2
    assert "tokenizer.json" in texts
    assert read_text_files(tmp_path) == texts


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        read_text_files(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(InvalidCheckpointError, match=r"tokenizer\.json is not UTF-8"):
        read_text_files(tmp_path)
