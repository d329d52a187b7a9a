"""Open the files of a checkpoint safely: regular files, inside the root, of a bounded size."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, NoReturn

from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.model import DataFile
from sllm_store.errors import InvalidCheckpointError, ReadError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

JSON_BYTES_MAX = 1 << 28  # A million entries take about half of that.


def data_file(path: Path, *, root: Path | None) -> DataFile:
    """Describe a data file as it is now.

    With a `root` (resolved), a file that is a symlink to somewhere outside it is refused.
    """
    status = _regular(path, root=root)
    return DataFile(
        path=path,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
    )


def read_range(path: Path, offset: int, size: int, *, root: Path | None) -> bytes:
    """Return `size` bytes of a file, or fewer where it ends."""
    _regular(path, root=root)
    try:
        # O_NONBLOCK: a pipe put in the file's place since it was looked at must not block us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0):
            return _read_all(descriptor, offset, size)
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path, *, root: Path | None) -> tuple[object, bytes]:
    """Return a JSON file's value, strictly read, and its bytes.

    Refuses what Python's reader would let through: duplicate keys (which of the two is meant?),
    NaN and infinities, and names that are not text.
    """
    status = _regular(path, root=root)
    if status.st_size > JSON_BYTES_MAX:
        raise InvalidCheckpointError(
            f"{path}: {format_size(status.st_size)} of JSON; "
            f"at most {format_size(JSON_BYTES_MAX)} is read"
        )
    data = read_range(path, 0, status.st_size, root=root)
    return parse_json(data, source=str(path)), data


def parse_json(data: bytes, *, source: str) -> object:
    """Return the value of strict JSON; errors name `source`."""
    try:
        text = data.decode("utf-8")
        # Every key has a colon behind it, and only an escape can be half of a surrogate pair: most
        # files show by these that no key was there twice, and each is text, without asking _unique.
        if "\\u" not in text:
            value: object = json.loads(text, parse_constant=_no_constant)
            if _count_keys(value) == text.count(":"):
                return value
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidCheckpointError(f"{source}: JSON nested too deeply") from None
    except ValueError as error:
        raise InvalidCheckpointError(f"{source}: not valid JSON: {error}") from None


def _count_keys(value: object) -> int:
    """Count the keys of an object and of the objects that are its values."""
    if not isinstance(value, dict):
        return 0
    return len(value) + sum(map(len, [item for item in value.values() if type(item) is dict]))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} occurs twice in one object")
            seen.add(key)
    try:
        "".join(result).encode()
    except UnicodeEncodeError:
        raise ValueError("a key holds half of a surrogate pair, which is not text") from None
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _regular(path: Path, *, root: Path | None) -> os.stat_result:
    """Return the status of a regular file inside the root."""
    try:
        if root is not None and not path.resolve().is_relative_to(root):
            raise InvalidCheckpointError(f"{path}: is a link to outside of {root}")
        status = path.stat()
    except FileNotFoundError:
        raise InvalidCheckpointError(
            f"{path}: missing; fetch the checkpoint again, or save it again"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: pathlib met a loop of links.
        raise InvalidCheckpointError(f"{path}: cannot be opened: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidCheckpointError(f"{path}: not a regular file")
    return status


def _read_all(descriptor: int, offset: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = os.pread(descriptor, min(size, 1 << 26), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)
