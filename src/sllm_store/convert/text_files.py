"""Read what a checkpoint has for text, whatever its format: tokenizer, templates, ends, as files.

A directory has them as files. A GGUF has them in its key-values, and they are made out of these.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sllm_store.checkpoint.gguf import FORMAT as GGUF
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.gguf_config import build_generation_config
from sllm_store.convert.gguf_metadata import GgufMetadata
from sllm_store.convert.gguf_tokenizer import describe_tokenizer
from sllm_store.convert.small_files import TEXT_FILES, TOKENIZER_FILE
from sllm_store.errors import InvalidCheckpointError, ReadError

if TYPE_CHECKING:
    from pathlib import Path

_NAMED_TEMPLATES = "additional_chat_templates"


def read_text_files(path: Path) -> dict[str, str]:
    """Return the text of each file that is there, by its path in a checkpoint's directory.

    Raises CheckpointNotFoundError if there is nothing at `path`, InvalidCheckpointError for a GGUF
    whose tokenizer is not known exactly and for files that are no text, ReadError. Whether the
    tokenizers library takes a tokenizer.json is for whoever gives it to that to find out.
    """
    if (path / TOKENIZER_FILE).is_file():
        return _read_directory(path)
    checkpoint = open_checkpoint(path)
    if checkpoint.format != GGUF:
        return _read_directory(checkpoint.directory)
    metadata = GgufMetadata(path=checkpoint.path, values=checkpoint.metadata)
    ends = json.dumps(build_generation_config(metadata))
    return describe_tokenizer(metadata) | {"generation_config.json": ends}


def _read_directory(directory: Path) -> dict[str, str]:
    names = [name for name in TEXT_FILES if (directory / name).is_file()]
    names += sorted(
        f"{_NAMED_TEMPLATES}/{found.name}"
        for found in (directory / _NAMED_TEMPLATES).glob("*.jinja")
        if found.is_file()
    )
    return {name: _read(directory / name) for name in names}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidCheckpointError(f"{path} is not UTF-8: {error}") from error
