"""`sllm-store rm`: a checkpoint leaves the disk at once and whole."""

from __future__ import annotations

import os
import secrets
import shutil
from typing import TYPE_CHECKING

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.finding import find
from sllm_store.cli.options import (
    address_option,
    name_argument,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import say
from sllm_store.errors import InUseError, InvalidRequestError, StoreError, WriteError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.cli.finding import Found
    from sllm_store.client import SllmStoreClient


@click.command()
@name_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@address_option
@storage_path_option
@verbose_option
def rm(*, name: str, yes: bool, address: str | None, storage_path: Path | None) -> None:
    """Remove a checkpoint.

    It leaves memory and disk. Fails while somebody uses it, or while it is pinned.
    """
    with if_running(address) as client:
        found = find(name, client, storage_path)
        if found.root is None:
            raise InvalidRequestError(
                f"{found.path} is not under the storage path: remove it with rm, or name its "
                "--storage-path"
            )
        _require_unused(found)
        paths = _paths(found)
        if not yes:
            _confirm(found, paths)
        if client is not None:
            _unload(found, client)
        for path in paths:
            _remove(path)
            _remove_empty_parents(path, found.root)
    say(f"removed {found.name}")


def _require_unused(found: Found) -> None:
    served = found.served
    if served is None:
        return
    if served.leases:
        raise InUseError(
            f"{found.name} is in use ({_count(served.leases, 'lease')}): close the programs that "
            "use it, then remove it"
        )
    if served.pinned:
        raise InUseError(f"{found.name} is pinned: run `sllm-store unpin {found.name}` first")
    for arena in served.resident:
        if arena.pinned:
            raise InUseError(
                f"{found.name} is pinned: run `sllm-store unpin {found.name} --device "
                f"{arena.device}` first"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _paths(found: Found) -> list[Path]:
    """Return what to remove: a directory, a link to one, or the files of one checkpoint."""
    from sllm_store.checkpoint.reader import inner_checkpoint, list_checkpoints

    if found.path.is_symlink():
        return [found.path]
    if not found.path.is_dir():
        return [file.path for file in found.open().files]
    try:
        found.open()
    except StoreError:
        # A broken one may be removed, a directory that never was one may not.
        assert found.root is not None
        if found.name not in list_checkpoints(found.root):
            raise
    inner = inner_checkpoint(found.path)
    if inner is not None:
        raise InvalidRequestError(
            f"{found.name} holds another checkpoint, {found.name}/{inner}: remove that first"
        )
    return [found.path]


def _confirm(found: Found, paths: list[Path]) -> None:
    from sllm_store.cli.disk_quota import used_bytes

    size = sum(used_bytes(path) if path.is_dir() else path.lstat().st_size for path in paths)
    question = f"Remove {found.name} ({format_size(size)} at {found.path})?"
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise
        raise InvalidRequestError(
            f"nobody is there to confirm removing {found.name}: pass --yes"
        ) from error
    if not agreed:
        raise InvalidRequestError(f"{found.name} was not removed")


def _unload(found: Found, client: SllmStoreClient) -> None:
    """Free its memory; the store says who uses it if somebody began to."""
    if found.served is None:
        return
    if found.served.resident:
        client.unload_from_gpu(found.served.name)
    if found.served.host_bytes:
        client.unload_from_cpu(found.served.name)


def _remove(path: Path) -> None:
    """Hide a directory, then delete it: a half-deleted one has no checkpoint's name.

    The hidden name is that of an unfinished save, so that the next save cleans up after a kill.
    """
    hidden = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        path.rename(hidden)
    except OSError as error:
        raise WriteError(f"cannot remove {path}: {error.strerror}; it is as it was") from error
    try:
        shutil.rmtree(hidden)
    except OSError as error:
        raise WriteError(
            f"{path} is no checkpoint any more, but not all of it could be removed: {error}; "
            f"remove {hidden}"
        ) from error


def _remove_empty_parents(path: Path, root: Path) -> None:
    """Remove what only the checkpoint's name needed: `organisation` of `organisation/name`."""
    top = root.resolve()
    for parent in path.parents:
        real = parent.resolve()
        if real == top or not real.is_relative_to(top):
            return
        try:
            parent.rmdir()
        except OSError:  # Others are in it, or it is not ours: it may stay.
            return
