"""Checkpoints that this process opened and planned, kept for the next load of the same.

To open and plan 20,000 tensors takes as long as to move 4 GB. What is kept is used only while every
file of the directory is as it was: by name, inode, size and time of modification.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.plan import plan_load
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.interpreter import no_collection
from sllm_store.tiers.ring_steps import Ring, plan_ring
from sllm_store.tiers.transfer import cut_image, cut_targets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.checkpoint.plan import LoadPlan
    from sllm_store.tiers.transfer import ChunkedImage, TransferPlan

KEPT_MAX = 8
# Of all that is kept together; a tensor takes about a kilobyte.
KEPT_TENSORS_MAX = 1 << 16

Files = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A checkpoint and what loading it takes, which depends on nothing but its files."""

    checkpoint: Checkpoint
    plan: LoadPlan
    chunked: ChunkedImage
    _through_rings: dict[int, TransferPlan] = field(default_factory=dict)

    def through_ring(self, slots: int, cold: frozenset[int]) -> TransferPlan:
        """Plan the way through a ring at address 0 to the arenas that are not empty, in order.

        Where all chunks are read from one place it is planned once for rings of one size.
        """
        ring = Ring(address=0, slots=slots, slot_bytes=self.chunked.chunk_bytes)
        arenas = [arena for arena in self.plan.arenas if arena.size_bytes]
        moves = partial(cut_targets, arenas, self.chunked)
        if 0 < len(cold) < sum(map(bool, self.chunked.reads)):
            return plan_ring(self.chunked, moves(), ring, cold=cold)
        if slots not in self._through_rings:
            plan = plan_ring(self.chunked, moves(), ring, cold=frozenset())
            self._through_rings[slots] = plan.kept()
        return self._through_rings[slots]


class PlannedLoads:
    """The loads that were planned last. Thread-safe."""

    def __init__(self, chunk_bytes: int) -> None:
        """Cut images into chunks of `chunk_bytes`."""
        self._chunk_bytes = chunk_bytes
        self._kept: OrderedDict[object, tuple[Files, Planned]] = OrderedDict()
        self._lock = threading.Lock()

    def plan(
        self, path: Path, device_map: Mapping[str, str], files: Files | None = None
    ) -> Planned:
        """Open a checkpoint and plan its load, unless that was done and its files are the same.

        `files` are those at the path, where they were looked for a moment ago. Raises what
        open_checkpoint and plan_load raise.
        """
        key = (path.absolute(), frozenset(device_map.items()))
        if files is None:
            files = files_at(path)
        with self._lock:
            kept, planned = self._kept.get(key, ((), None))
            if planned is not None and kept == files:
                self._kept.move_to_end(key)
                return planned
        with no_collection():
            planned = self._plan(path, device_map)
        # Files that changed meanwhile are opened again by the next load.
        if files and files_at(path) == files:
            self._keep(key, files, planned)
        return planned

    def _plan(self, path: Path, device_map: Mapping[str, str]) -> Planned:
        checkpoint = open_checkpoint(path)
        plan = plan_load(checkpoint, plan_image(checkpoint, self._chunk_bytes), device_map)
        return Planned(
            checkpoint=checkpoint, plan=plan, chunked=cut_image(plan.image, self._chunk_bytes)
        )

    def _keep(self, key: object, files: Files, planned: Planned) -> None:
        with self._lock:
            self._kept[key] = files, planned
            self._kept.move_to_end(key)
            tensors = sum(len(kept.plan.tensors) for _, kept in self._kept.values())
            while self._kept and (len(self._kept) > KEPT_MAX or tensors > KEPT_TENSORS_MAX):
                _, (_, oldest) = self._kept.popitem(last=False)
                tensors -= len(oldest.plan.tensors)


def files_at(path: Path) -> Files:
    """Describe what may be read at `path`; nothing where that cannot be told."""
    directory = path if path.is_dir() else path.parent
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()
    return tuple(
        sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)
    )
