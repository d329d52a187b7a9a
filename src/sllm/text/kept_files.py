"""The text files of a GGUF, kept between processes: with a large vocabulary they take seconds.

They are kept under the user's cache directory, by where the GGUF is and what the file system says
of it, and only the last few. A file there is a hint: one that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from sllm_store.convert.text_files import read_text_files
from sllm_store.user_cache import keep_text, user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEPT = 16
_VERSION = 1  # Of what is made of a GGUF; a change there changes this.


def read_kept_files(path: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what read_text_files does; a GGUF's from what was kept, if it is unchanged."""
    try:
        found = path.stat()
    except OSError:
        return read_text_files(path)
    if not path.is_file():
        return read_text_files(path)
    said = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
    mark = [_VERSION, version("serverless-llm"), str(path.absolute()), *said]
    name = hashlib.sha256(json.dumps(mark).encode()).hexdigest()
    file = user_cache(environ) / "text" / f"{name}.json"
    kept = _recall(file, mark)
    if kept is not None:
        return kept
    texts = read_text_files(path)
    with suppress(OSError):  # They are made again next time.
        _keep(file, {"mark": mark, "files": texts})
    return texts


def _recall(file: Path, mark: list[object]) -> dict[str, str] | None:
    try:
        said = json.loads(file.read_bytes())
        files = said["files"] if said["mark"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        return None
    return files


def _keep(file: Path, content: Mapping[str, object]) -> None:
    keep_text(file, json.dumps(content))
    others = sorted(file.parent.glob("*.json"), key=_changed_ns, reverse=True)
    for old in others[KEPT:]:
        old.unlink(missing_ok=True)


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # Another process has just taken it away.
        return 0
