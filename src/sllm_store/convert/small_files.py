"""The files of a checkpoint that are not tensors: which ones travel along, and carrying them."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sllm_store.errors import InvalidCheckpointError, ReadError, WriteError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TEXT_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What says beside weights which text goes in and comes out."""

# Weights in any format, the tables that lead to them, and what a checkpoint of ours writes itself.
_LEFT_BEHIND = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "tensor.data_*",
    "tensor_index.json",
    "compressed_index.json",
    "checkpoint.json",
)
_LEFT_DIRECTORIES = frozenset({"original", ".git", ".cache"})


def find_small_files(directory: Path) -> list[Path]:
    """Return the files that travel along, relative to the directory, in order.

    Links to files are followed (a hub's cache is made of them), links to directories are not.
    """
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in _LEFT_DIRECTORIES]
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not any(fnmatch(name, pattern) for pattern in _LEFT_BEHIND):
                found.append(path.relative_to(directory))
    return sorted(found)


def carry(directory: Path, names: list[Path], into: Path) -> None:
    """Copy files verbatim; raise ReadError or WriteError naming the one that failed."""
    for name in names:
        try:
            source = (directory / name).open("rb")
        except OSError as error:
            raise ReadError(f"cannot read {directory / name}: {error.strerror}") from error
        with source:
            _write(into / name, source)


def write_texts(texts: Mapping[str, str], into: Path) -> None:
    """Write small text files, by their path in the directory."""
    for name, text in texts.items():
        path = into / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror}") from error


def change_config_dtype(directory: Path, dtype: str) -> None:
    """Say in config.json what the float tensors have become, where there is such a file."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidCheckpointError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidCheckpointError(f"{path.name} is not a JSON object")
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    config |= dict.fromkeys(keys, dtype)
    write_texts({CONFIG_FILE: json.dumps(config, ensure_ascii=False, indent=2) + "\n"}, directory)


def _write(path: Path, source: BinaryIO) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as sink:
            shutil.copyfileobj(source, sink)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}") from error
