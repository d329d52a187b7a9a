"""The checkpoints under the storage path: opened once, and again when their files change."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.reader import list_checkpoints, open_checkpoint, resolve
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    StoreError,
)
from sllm_store.server.plans import Plans, WholePlan
from sllm_store.tiers.transfer import ChunkedImage, ImageMap, cut_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.server.plans import PlannedLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An open checkpoint and what loading it needs, worked out once."""

    name: str
    checkpoint: Checkpoint
    chunked: ChunkedImage
    image_map: ImageMap
    whole: WholePlan

    @property
    def file_bytes(self) -> int:
        """Size of the data files, padding included: what upstream calls the model's size."""
        return sum(file.size_bytes for file in self.checkpoint.files)


class Catalog:
    """Names to checkpoints. Thread-safe; opening happens in the caller's thread."""

    def __init__(
        self,
        root: Path,
        retire: Callable[[str], None],
        *,
        chunk_bytes: int,
        registration_required: bool,
    ) -> None:
        """Serve the checkpoints under `root`, which is resolved now.

        `retire` is told the name of a model whose files changed or went.
        """
        self.root = root.resolve()
        self._retire = retire
        self._chunk_bytes = chunk_bytes
        self._registration_required = registration_required
        self._entries: dict[str, Entry] = {}
        self._registered: set[str] = set()
        self._plans = Plans()
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}

    def register(self, name: str) -> Entry:
        """Open a checkpoint and allow it to be loaded."""
        entry = self._open(name)
        with self._lock:
            self._registered.add(entry.name)
        return entry

    def get(self, name: str) -> Entry:
        """Return the checkpoint, opened again if its files changed.

        Raises CheckpointNotFoundError, InvalidCheckpointError, or InvalidRequestError when the
        store wants registration first and there was none.
        """
        entry = self._open(name)
        if self._registration_required:
            with self._lock:
                if entry.name not in self._registered:
                    raise InvalidRequestError(
                        f"{name} is not registered, and this store was started with "
                        "--registration-required: call RegisterModel first"
                    )
        return entry

    def plan(self, name: str, device_map: Mapping[str, str]) -> PlannedLoad:
        """Return the plan of a load, which is known by its id for a while."""
        return self._plans.plan(self.get(name), device_map)

    def planned(self, plan_id: str) -> PlannedLoad:
        """Return a plan made before, at once; raise InvalidRequestError if it is gone.

        Whether it is out of date is not looked at: see require_current.
        """
        planned = self._plans.find(plan_id)
        if planned is None:
            raise InvalidRequestError(
                f"no plan {plan_id!r}: it was never made, or forgotten for newer ones; plan again"
            )
        return planned

    def require_current(self, planned: PlannedLoad) -> None:
        """Raise InvalidCheckpointError if the files are not those that a plan was made for."""
        try:
            planned.entry.checkpoint.require_unchanged()
        except InvalidCheckpointError as error:
            raise InvalidCheckpointError(f"{error}; plan the load again") from error

    def names(self) -> list[str]:
        """Return the names of all checkpoints that there are, and forget those that went."""
        names = sorted(list_checkpoints(self.root))
        with self._lock:
            gone = self._entries.keys() - names
        for key in gone:
            self._forget_gone(key)
        return names

    def inspect(self, name: str) -> Entry | StoreError:
        """Return the checkpoint, or why it cannot be opened."""
        try:
            return self._open(name)
        except StoreError as error:
            return error

    def _open(self, name: str) -> Entry:
        try:
            path = resolve(self.root, name)
        except CheckpointNotFoundError:
            self._forget_gone(PurePosixPath(name).as_posix())
            raise
        key = path.relative_to(self.root).as_posix()
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            found = self._entries.get(key)
            if found is not None:
                try:
                    found.checkpoint.require_unchanged()
                except InvalidCheckpointError:
                    self._forget(key)
                else:
                    return found
            checkpoint = open_checkpoint(path, root=self.root)
            image = plan_image(checkpoint, self._chunk_bytes)
            entry = Entry(
                name=key,
                checkpoint=checkpoint,
                chunked=cut_image(image, self._chunk_bytes),
                image_map=ImageMap.of(checkpoint, image),
                whole=WholePlan.of(checkpoint, image),
            )
            with self._lock:
                self._entries[key] = entry
            return entry

    def _forget_gone(self, key: str) -> None:
        """Forget a checkpoint that nothing has the name of any more: nobody could free it."""
        with self._lock:
            opening = self._opening.get(key)
        if opening is None:
            return
        with opening:
            if key in self._entries and not (self.root / key).exists():
                self._forget(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            del self._entries[key]
        self._retire(key)
