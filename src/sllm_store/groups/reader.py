"""GroupReader: reads groups of tensors from disk into buffers, with the native engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.groups.layout import PAGE, lay_out
from sllm_store.tiers.transfer import TransferPlan, run_plan
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.groups.layout import GroupLayout
    from sllm_store.groups.stored import StoredModel, StoredTensor


class GroupReader:
    """Reads groups of one model. Several threads may read at once, into buffers of their own."""

    def __init__(
        self,
        model: StoredModel,
        groups: Sequence[Sequence[StoredTensor]],
        *,
        mode: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Plan groups, which are then known by their index."""
        self.layouts: tuple[GroupLayout, ...] = tuple(lay_out(group) for group in groups)
        self._reads = [self._whole_pages(model, layout) for layout in self.layouts]
        self._model = model
        self.mode = mode
        self.files = model.files
        self._threads = threads or min(16, 2 * (os.cpu_count() or 4))

    @property
    def made_bytes(self) -> int:
        """Return the bytes of the host's memory that are taken for as long as the model is open."""
        made = self._model.made
        return 0 if made is None else made.file.size

    def size_bytes(self, group: int) -> int:
        """Return the bytes that a buffer for the group needs."""
        return self.layouts[group].size_bytes

    def read(
        self, group: int, buffer: native.HostBuffer, control: native.Control | None = None
    ) -> None:
        """Fill the buffer with a group; raise ReadError, or LoadCancelledError.

        Raises InvalidCheckpointError if the files have changed since they were opened.
        """
        self.read_many([(group, 0)], buffer, control)

    def read_many(
        self,
        places: Sequence[tuple[int, int]],
        buffer: native.HostBuffer,
        control: native.Control | None = None,
    ) -> None:
        """Read groups to offsets of one buffer, all at once; raises what `read` does."""
        self.prepare()
        plan = TransferPlan()
        for group, offset in places:
            layout = self.layouts[group]
            assert offset + layout.size_bytes <= buffer.size, "the buffer holds the group"
            if layout.reads:
                plan.add(buffer.address + offset, reads=self._reads[group])
        if plan.reads:
            run_plan(
                plan,
                self.files,
                (),
                mode=self.mode,
                threads=self._threads,
                control=control or native.Control(),
            )
        self.require_unchanged()

    def ranges(self, group: int) -> Sequence[tuple[int, int, int, int]]:
        """Return what to read of a group: (file, file offset, size, offset in the buffer)."""
        return self._reads[group]

    def lands_in_place(self, group: int) -> bool:
        """Return whether a group's ranges begin at the same offset in a page as in the file."""
        return all(offset % PAGE == place % PAGE for _, offset, _, place in self._reads[group])

    def prepare(self) -> None:
        """Have everything there that reads of `files` find; raises ReadError."""
        self._model.prepare()

    def require_unchanged(self) -> None:
        """Raise InvalidCheckpointError if the files have changed since they were opened."""
        self._model.checkpoint.require_unchanged()

    def allocate(self, size_bytes: int) -> native.HostBuffer:
        """Return memory to read into, page aligned."""
        return native.HostBuffer(max(size_bytes, 1))

    def load(self, group: int) -> native.HostBuffer:
        """Return a buffer of its own with the group."""
        buffer = self.allocate(self.size_bytes(group))
        self.read(group, buffer)
        return buffer

    @staticmethod
    def _whole_pages(
        model: StoredModel, layout: GroupLayout
    ) -> tuple[tuple[int, int, int, int], ...]:
        """Return a group's reads with what else is in their pages, so that no byte is copied.

        A read that began or ended within a block of the disk would take that block by way of other
        memory. Each run has its pages of the buffer for itself.
        """
        reads = []
        for file, start, size_bytes, place in layout.reads:
            before = start % PAGE
            if place % PAGE == before:
                end = min(align_up(start + size_bytes, PAGE), model.files[file].size)
                reads.append((file, start - before, end - start + before, place - before))
            else:
                reads.append((file, start, size_bytes, place))
        return tuple(reads)
