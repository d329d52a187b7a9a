"""Open a checkpoint of any format, and find checkpoints by name below a root."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from sllm_store.checkpoint import gguf, indexed, safetensors
from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.index import COMPRESSED_INDEX_FILE, INDEX_FILE
from sllm_store.checkpoint.manifest import partition_name
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    ReadError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sllm_store.checkpoint.model import Checkpoint

REPLACED_RETRIES = 20

_SNAPSHOTS = "snapshots"  # Where Hugging Face's cache has the files of each commit of a model.
_PARTIAL = re.compile(r"\..*\.partial-.*")


def open_checkpoint(path: Path, *, root: Path | None = None) -> Checkpoint:
    """Return the validated checkpoint at `path`: a directory, a .safetensors or a .gguf file.

    Where a directory holds several formats, ours wins, then safetensors, then GGUF. With a `root`,
    no file may be a symlink to outside of it. Raises CheckpointNotFoundError if nothing is there,
    InvalidCheckpointError naming file and field if what is there cannot be trusted.
    """
    resolved_root = root.resolve() if root is not None else None
    # A save replaces the whole directory at once: what was read from two directories, the old and
    # the new one, is neither, so it is read again.
    for attempt in range(REPLACED_RETRIES):
        with _Held(path) as held:
            try:
                checkpoint = _open(path, root=resolved_root)
            except (CheckpointNotFoundError, InvalidCheckpointError, ReadError):
                if attempt + 1 == REPLACED_RETRIES or held.is_there():
                    raise
            else:
                if held.is_there():
                    return checkpoint
    raise InvalidCheckpointError(f"{path}: is being replaced over and over; try again")


def guess_arena_bytes(path: Path) -> int:
    """Return about what all tensors of a checkpoint take on a GPU, a little more rather than less.

    That is what published files take: their headers are more than what is between tensors there,
    but for odd sizes. 0 for what is no directory of such files.
    """
    with suppress(OSError), os.scandir(path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
        if _kind_of(sizes) == safetensors.FORMAT:
            return sum(sizes[name] for name in safetensors.likely_files(sizes))
    return 0


def list_checkpoints(root: Path) -> Iterator[str]:
    """Yield the names, relative to `root`, of what looks like a checkpoint, in order.

    Nothing is opened. Hidden and half-written directories are skipped; a link to a directory is
    listed if it stays inside the root, but not searched.
    """
    top = root.resolve()
    pending = [top]
    while pending:
        directory = pending.pop()
        files, directories = _scan(directory, top)
        relative = directory.relative_to(top)
        if directory != top and _kind_of(files) is not None:
            yield relative.as_posix()
        else:
            singles = files if directory == top else _named_gguf(files)
            for name in singles:
                if _kind_of_file(name) is not None and gguf.is_first_of_series(name):
                    yield (relative / name).as_posix()
        pending.extend(path for path in reversed(directories) if not path.is_symlink())
        for link in (path for path in directories if path.is_symlink()):
            if _kind_of(_scan(link, top)[0]) is not None:
                yield link.relative_to(top).as_posix()


def inner_checkpoint(path: Path) -> str | None:
    """Return the name of a checkpoint in a directory below `path`, None if there is none."""
    # Files of the directory itself are listed too, as if each were a checkpoint.
    return next((name for name in list_checkpoints(path) if not (path / name).is_file()), None)


def require_replaceable(path: Path) -> None:
    """Raise InvalidRequestError if there is more at `path` than one checkpoint, or no checkpoint.

    What takes the place of a directory removes all that is in it.
    """
    if not path.is_dir():
        return
    names = [entry.name for entry in path.iterdir()]
    if names and _kind_of(names) is None and partition_name(0) not in names:
        raise InvalidRequestError(
            f"{path} holds other things than a checkpoint, which would be lost: choose another name"
        )
    inner = inner_checkpoint(path)
    if inner is not None:
        raise InvalidRequestError(
            f"{path} holds another checkpoint, {inner}, which would be lost: choose another name, "
            "or move it"
        )


def resolve(root: Path, name: str) -> Path:
    """Return the path of a checkpoint's name below `root`.

    Raises InvalidRequestError for a name that could lead elsewhere, CheckpointNotFoundError if
    nothing has this name.
    """
    pure = PurePosixPath(name)
    if "\0" in name or pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise InvalidRequestError(
            f"{shown(name)} is not the name of a checkpoint: give a path relative to {root}"
        )
    if any(_PARTIAL.fullmatch(part) for part in pure.parts):
        raise InvalidRequestError(f"{shown(name)} is a checkpoint that is still being written")
    top = root.resolve()
    path = top / pure
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, UnicodeError):  # RuntimeError: a loop of links.
        raise CheckpointNotFoundError(f"no checkpoint {shown(name)} in {root}") from None
    if not real.is_relative_to(top):
        raise InvalidRequestError(f"{shown(name)} is a link to outside of {root}")
    return path


def name_under(root: Path, path: Path) -> str | None:
    """Return the name of a path as a checkpoint of a storage path, None if it is outside of it.

    A link inside has a name of its own, beside that of what it leads to.
    """
    name = _name_below(root, path)
    if name is None:  # Most are below it as they stand: links are not looked at before that.
        real = root.resolve()
        name = _name_below(real, path) or _name_below(real, path.resolve())
    return name


def _name_below(top: Path, path: Path) -> str | None:
    if path == top or ".." in path.parts or not path.is_relative_to(top):
        return None
    return path.relative_to(top).as_posix()


def _open(path: Path, *, root: Path | None) -> Checkpoint:
    try:
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir())
            kind = _kind_of(names)
        else:
            names = []
            kind = _kind_of_file(path.name) if path.exists() else None
    except OSError as error:
        raise CheckpointNotFoundError(f"cannot read {path}: {error.strerror}") from error
    match kind:
        case indexed.FORMAT:
            return indexed.open_indexed(path, root=root)
        case safetensors.FORMAT:
            return safetensors.open_safetensors(path, root=root)
        case gguf.FORMAT:
            return gguf.open_gguf(path, root=root)
    raise _nothing_at(path, names)


def _nothing_at(path: Path, names: list[str]) -> CheckpointNotFoundError | InvalidCheckpointError:
    if not path.exists():
        return CheckpointNotFoundError(f"{path} does not exist")
    if partition_name(0) in names:
        return InvalidCheckpointError(
            f"{path / INDEX_FILE}: missing beside {partition_name(0)}, and so is "
            f"{COMPRESSED_INDEX_FILE}"
        )
    series = _named_gguf(names)
    if series:
        return InvalidCheckpointError(
            f"{path}: has {len(series)} GGUF files that are not parts of one model; give the path "
            f"of one, for example {path / series[0]}"
        )
    snapshots = sorted(path.glob(f"{_SNAPSHOTS}/*")) if _SNAPSHOTS in names else []
    if snapshots:
        return CheckpointNotFoundError(
            f"{path} is a model in Hugging Face's cache: give the path of a snapshot, for example "
            f"{snapshots[0]}"
        )
    return CheckpointNotFoundError(
        f"{path} holds no checkpoint: looked for {INDEX_FILE}, *.safetensors and *.gguf"
    )


def _kind_of(names: Iterable[str]) -> str | None:
    """Return the format of a directory that holds files with these names."""
    known = list(names)
    if INDEX_FILE in known or COMPRESSED_INDEX_FILE in known:
        return indexed.FORMAT
    if safetensors.INDEX_FILE in known or any(name.endswith(safetensors.SUFFIX) for name in known):
        return safetensors.FORMAT
    return gguf.FORMAT if gguf.one_series(_named_gguf(known)) else None


def _kind_of_file(name: str) -> str | None:
    if name.endswith(safetensors.SUFFIX):
        return safetensors.FORMAT
    return gguf.FORMAT if name.endswith(".gguf") else None


def _named_gguf(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".gguf"))


class _Held:
    """What is at a path, kept by a descriptor: nothing that comes later can have its number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._descriptor = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def is_there(self) -> bool:
        """Whether it still is at its path; of nothing, whether there still is nothing."""
        try:
            found = self._path.stat()
        except OSError:
            return self._descriptor is None
        if self._descriptor is None:
            return False
        held = os.fstat(self._descriptor)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _scan(directory: Path, top: Path) -> tuple[list[str], list[Path]]:
    """Return the names of files and the paths of directories, both sorted, none hidden."""
    files: list[str] = []
    directories: list[Path] = []
    try:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = directory / entry.name
                if entry.name.startswith(".") or not _stays_inside(entry, path, top):
                    continue
                if entry.is_dir():
                    directories.append(path)
                else:
                    files.append(entry.name)
    except OSError:
        # A directory that may not be read, or is gone by now, has nothing to list.
        return [], []
    return files, directories


def _stays_inside(entry: os.DirEntry[str], path: Path, top: Path) -> bool:
    if not entry.is_symlink():
        return True
    try:
        return path.resolve(strict=True).is_relative_to(top)
    except (OSError, RuntimeError):
        return False
