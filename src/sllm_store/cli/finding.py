"""Find a checkpoint by name or path, and what a running store says of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store.errors import CheckpointNotFoundError

if TYPE_CHECKING:
    from sllm_store.answers import ModelInfo
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.client import SllmStoreClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint on this machine.

    `root` is the storage path that it is in, None if it was given by a path to elsewhere. `served`
    is what the running store says of it, None if none runs or it does not serve it.
    """

    name: str
    path: Path
    root: Path | None
    served: ModelInfo | None

    def open(self) -> Checkpoint:
        """Open it, keeping its links inside the storage path."""
        from sllm_store.checkpoint.reader import open_checkpoint

        return open_checkpoint(self.path, root=self.root)


def storage_root(client: SllmStoreClient | None, storage_path: Path | None) -> Path:
    """Return the storage path that was given, else the running store's, else the default."""
    from sllm_store.config import default_storage_path

    if storage_path is not None:
        return storage_path
    if client is not None:
        return client.storage_path()
    return default_storage_path(os.environ)


def find(name: str, client: SllmStoreClient | None, storage_path: Path | None) -> Found:
    """Return the checkpoint: a name under the storage path first, then a path from here.

    Raises CheckpointNotFoundError saying where it looked.
    """
    from sllm_store.checkpoint.reader import name_under, resolve

    root = storage_root(client, storage_path)
    given = Path(name).expanduser()
    if not _is_explicit(name):
        try:
            path = resolve(root, name)
        except CheckpointNotFoundError:
            if not given.exists():
                raise
        else:
            return Found(name=name, path=path, root=root, served=_served(client, path))
    path = given.absolute()
    if not path.exists():
        raise CheckpointNotFoundError(f"no checkpoint at {path}")
    under = name_under(root, path)
    return Found(
        name=under or str(path),
        path=path,
        root=None if under is None else root,
        served=_served(client, path),
    )


def served_name(name: str, client: SllmStoreClient) -> str:
    """Return what a store calls a checkpoint that was given by a path to it, else the name."""
    from sllm_store.checkpoint.reader import name_under

    if not _is_explicit(name):
        return name
    path = Path(name).expanduser().absolute()
    return name_under(client.storage_path(), path) or name


def serves(client: SllmStoreClient, root: Path) -> bool:
    """Return whether a store serves the checkpoints of this storage path."""
    return client.storage_path() == root.resolve()


def _served(client: SllmStoreClient | None, path: Path) -> ModelInfo | None:
    from sllm_store.checkpoint.reader import name_under

    if client is None:
        return None
    name = name_under(client.storage_path(), path)
    return next((model for model in client.list_models() if model.name == name), None)


def _is_explicit(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith(("./", "../", "~"))
