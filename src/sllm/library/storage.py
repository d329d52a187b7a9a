"""Storage: bytes under a root that appear whole or not at all, and go when nothing uses them.

    root/files/<identity>/   what was fetched, one directory each, shared by every name that uses it
    root/staging/            what is on its way, or on its way out; whose process is gone is swept
    root/.lock               held for every change of names, never while bytes are fetched

A process may be killed at any line: a directory has its name in files/ once it is whole, and what
no manifest uses is removed by the next change.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sllm.core.errors import LibraryError, PullError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

LOCK_TIMEOUT_S = 60.0
_LOCK_RETRY_S = 0.02


class Storage:
    """The files of a library. Any number of processes may use one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        self._staging = root / "staging"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from changing names; raise LibraryError if they do not end in time."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("ab") as file:
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline_s:
                    raise LibraryError(
                        f"{self.root} has been locked by another process for "
                        f"{LOCK_TIMEOUT_S:.0f} s: end that one, or try again"
                    )
                time.sleep(_LOCK_RETRY_S)
            yield

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """Yield a new directory, which is removed at the end, also by others if this process dies.

        Do not hold the lock.
        """
        with self.lock():
            self._staging.mkdir(exist_ok=True)
            directory = self._new_staged()
            descriptor = os.open(directory, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)

    def publish(self, staged: Path, identity: str) -> Path:
        """Give a staged directory its place, and return that. Hold the lock.

        What is there already under this identity is the same, and stays, unless files of it went.
        """
        target = self.files / identity
        if target.is_dir():
            if _sizes(target) == _sizes(staged):
                return target
            target.rename(self._new_staged() / target.name)
        self.files.mkdir(exist_ok=True)
        _sync(staged)
        staged.rename(target)
        sync_directory(self.files)
        return target

    def sweep(self, used: Collection[str]) -> None:
        """Remove what no manifest uses and what dead processes left. Hold the lock."""
        for directory in _children(self.files):
            if directory.name not in used:
                self._staging.mkdir(exist_ok=True)
                directory.rename(self._new_staged() / directory.name)
        for directory in _children(self._staging):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)

    def _new_staged(self) -> Path:
        return self._staging.joinpath(tempfile.mkdtemp(dir=self._staging))


def _sizes(directory: Path) -> dict[str, int]:
    """Return how large each file below a directory is; a link to nothing is none."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


def require_room(
    directory: Path, size_bytes: int, *, what: str, named_by: str = "GDSLLM_MODEL_ROOT"
) -> None:
    """Raise PullError unless the disk of a directory has room for so many bytes more.

    named_by: the variable that chooses another disk.
    """
    free_bytes = shutil.disk_usage(directory).free
    if size_bytes > free_bytes:
        raise PullError(
            f"{what} needs {format_size(size_bytes)} more, and {directory} has room for "
            f"{format_size(free_bytes)}: free some space, choose another disk with {named_by}, or "
            "pull a smaller model"
        )


def write_file(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees all of the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - mkstemp gave a string.
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108 - mkstemp gave a string.
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(source: Path, target: Path, *, may_link: bool = True) -> None:
    """Give a file a second name: a hard link, or on another file system a symbolic one.

    may_link: False if the source will go, so that a copy has to do there.
    """
    real = source.resolve(strict=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(real)
    except OSError:  # Another file system, or one without hard links.
        if may_link:
            target.symlink_to(real)
        else:
            shutil.copyfile(real, target)


def _sync(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)  # noqa: PTH118 - os.walk gives strings.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_directory(directory)


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
