"""Write beside, sync, rename: a directory becomes visible whole or not at all.

A staging directory lives beside its target under a hidden name, with a lock file that its process
holds. What a killed process left behind is no longer locked, and the next save removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from sllm_store.checkpoint.index import COMPRESSED_INDEX_FILE, INDEX_FILE
from sllm_store.checkpoint.manifest import MANIFEST_FILE
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path

DATA_PREFIX = "tensor.data_"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Staging:
    """A hidden directory beside `target` that can take its place.

    close() removes what has the hidden name: the unfinished directory, or, after publish(), the
    one that was replaced.
    """

    def __init__(self, target: Path) -> None:
        """Make the directory. Stale ones of the same target are removed."""
        # The place that a link leads to is replaced, not the link.
        self.target = target.resolve()
        _check_target(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self.target)
        self._hidden = _Hidden(self.target)
        self.directory = self._hidden.path
        self.directory.mkdir()

    def publish(self, *, keep_files: bool) -> None:
        """Replace the target, or create it. With keep_files its other files come along."""
        if self.target.is_dir():
            shutil.copymode(self.target, self.directory)
            if keep_files:
                _carry_over(self.target, self.directory, is_top=True)
        _sync_tree(self.directory)
        try:
            self.directory.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._replace()
        _sync(self.target.parent)

    def close(self) -> None:
        """Remove the hidden directory and its lock."""
        self._hidden.remove()

    def _replace(self) -> None:
        if _try_exchange(self.directory, self.target):
            return
        # The file system cannot exchange. Killed between the two renames, there is no checkpoint.
        old = _Hidden(self.target)
        try:
            self.target.rename(old.path)
            try:
                self.directory.rename(self.target)
            except OSError:
                old.path.rename(self.target)
                raise
        finally:
            old.remove()


class _Hidden:
    """A hidden name beside a target, reserved by a lock file for as long as this process lives."""

    def __init__(self, target: Path) -> None:
        while True:
            self.path = target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}")
            self._lock_path = _lock_path(self.path)
            descriptor = _try_lock(self._lock_path)
            if descriptor is not None:
                self._descriptor = descriptor
                return

    def remove(self) -> None:
        """Remove the directory, if there is one, and give the name back."""
        _remove_locked(self.path, self._lock_path, self._descriptor)


def is_own_data(name: str) -> bool:
    """Return whether a file of this name is part of a checkpoint, not one kept beside it."""
    return (
        name.startswith(DATA_PREFIX)
        or name in (INDEX_FILE, COMPRESSED_INDEX_FILE, MANIFEST_FILE)
        or name.endswith(".partial")
    )


def _check_target(target: Path) -> None:
    if not target.name:
        raise InvalidRequestError(f"{target} cannot be a checkpoint: name a directory in it")
    if target.exists() and not target.is_dir():
        raise InvalidRequestError(f"{target} is a file, and a checkpoint is a directory")
    with suppress(FileNotFoundError):  # The current directory itself may be gone.
        if type(target)().absolute().resolve().is_relative_to(target):
            raise InvalidRequestError(
                f"{target} holds the current directory, which a save would replace; save into a "
                "directory below it"
            )


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and flock a cleaner may have removed the file: then it locks nothing.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _remove_stale(target: Path) -> None:
    """Remove what processes left that died while they saved to this target."""
    found = {
        entry.with_name(entry.name.removesuffix(".lock"))
        for entry in target.parent.iterdir()
        if entry.name.startswith(_prefix(target))
    }
    for path in found:
        descriptor = _try_lock(_lock_path(path))
        if descriptor is not None:
            _remove_locked(path, _lock_path(path), descriptor)


def _remove_locked(path: Path, lock_path: Path, descriptor: int) -> None:
    # What cannot be removed stays hidden; the next save tries again.
    shutil.rmtree(path, ignore_errors=True)
    lock_path.unlink(missing_ok=True)
    os.close(descriptor)


def _carry_over(old: Path, new: Path, *, is_top: bool = False) -> None:
    """Link the files of one tree into another that lacks them."""
    for source in old.iterdir():
        destination = new / source.name
        if is_top and is_own_data(source.name):
            continue
        if source.is_dir() and not source.is_symlink():
            if not destination.exists():
                destination.mkdir()
                shutil.copymode(source, destination)
            if destination.is_dir():
                _carry_over(source, destination)
        elif not os.path.lexists(destination):
            _link(source, destination)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except FileNotFoundError:
        return  # Somebody removed it just now: then it is not kept.
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copy2(source, destination, follow_symlinks=False)


def _sync_tree(directory: Path) -> None:
    """Sync every file but the partitions, which are synced when they are finished."""
    for path in directory.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            _sync_tree(path)
        elif stat.S_ISREG(mode) and not path.name.startswith(DATA_PREFIX):
            _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
