"""Small files travel along; weights and histories stay."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sllm_store.convert.small_files import (
    carry,
    change_config_dtype,
    find_small_files,
    write_texts,
)
from sllm_store.errors import InvalidCheckpointError, ReadError, WriteError

if TYPE_CHECKING:
    from pathlib import Path

KEPT = [
    "README.md",
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "modeling_custom.py",
    "tokenizer.json",
    "tokenizer.model",
]
LEFT = [
    ".cache/huggingface/x.lock",
    ".git/HEAD",
    "checkpoint.json",
    "model-00001-of-00002.safetensors",
    "model.onnx",
    "model.safetensors.index.json",
    "nested/model.safetensors",
    "original/params.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.msgpack",
    "tensor.data_0",
    "tensor_index.json",
    "tf_model.h5",
    "training.pt",
    "weights.gguf",
    "x.pth",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    for name in KEPT + LEFT:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() + b"\r\n\xff")
    return directory


def test_everything_but_weights_travels_verbatim(source: Path, tmp_path: Path) -> None:
    names = find_small_files(source)
    assert [str(name) for name in names] == KEPT
    (tmp_path / "target").mkdir()
    carry(source, names, tmp_path / "target")
    for name in KEPT:
        assert (tmp_path / "target" / name).read_bytes() == (source / name).read_bytes()


def test_links_to_files_are_followed_and_links_to_directories_are_not(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "blob").write_text("real")
    (source / "vocab.txt").symlink_to(tmp_path / "blob")
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to(tmp_path / "nothing")
    names = [str(name) for name in find_small_files(source)]
    assert names == sorted([*KEPT, "vocab.txt"])
    (tmp_path / "target").mkdir()
    carry(source, find_small_files(source), tmp_path / "target")
    assert not (tmp_path / "target/vocab.txt").is_symlink()
    assert (tmp_path / "target/vocab.txt").read_text() == "real"


def test_a_file_that_is_gone_is_named(source: Path, tmp_path: Path) -> None:
    names = find_small_files(source)
    (source / "config.json").unlink()
    with pytest.raises(ReadError, match=r"cannot read .*config\.json"):
        carry(source, names, tmp_path / "target")


def test_a_directory_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"cannot write .*file/config\.json"):
        write_texts({"config.json": "{}"}, tmp_path / "file")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_is_changed_under_the_key_that_is_there(key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1, key: "float32"}))
    change_config_dtype(tmp_path, "bfloat16")
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1, key: "bfloat16"}


def test_without_a_configuration_there_is_nothing_to_change(tmp_path: Path) -> None:
    change_config_dtype(tmp_path, "bfloat16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"config\.json is not"):
        change_config_dtype(tmp_path, "bfloat16")
