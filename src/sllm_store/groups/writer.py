"""GroupWriter: a checkpoint of ours written a group at a time, each from the start of a page on.

So a group that is read by itself is one direct read, and lies in every buffer as it does here.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.writer import CheckpointWriter, Source
from sllm_store.convert.importer import carry_small_files
from sllm_store.groups.layout import PAGE
from sllm_store.groups.stored import item_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTensor:
    """A contiguous tensor at an offset of its group's memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class GroupWriter:
    """A context manager: leaving it cleanly publishes the checkpoint, an error leaves no trace."""

    def __init__(self, target: Path) -> None:
        self._writer = CheckpointWriter(target, alignment=PAGE, keep_files=False)
        self._closing = ExitStack()
        self._groups = 0

    def __enter__(self) -> Self:
        self._closing.enter_context(self._writer)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.__exit__(*exc_info)  # type: ignore[arg-type]

    @property
    def directory(self) -> Path:
        """The directory that becomes the target, for small files."""
        return self._writer.directory

    def write(self, tensors: Iterable[GroupTensor], *, address: int, size_bytes: int) -> None:
        """Write a group out of memory, which may be reused on return."""
        self._groups += 1
        self._writer.write(
            Source(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                stride=contiguous_stride(tensor.shape),
                storage_offset=tensor.offset // item_bytes(tensor.dtype),
                storage=self._groups,
                address=address,
                size_bytes=size_bytes,
            )
            for tensor in tensors
        )

    def carry(self, source: Path) -> None:
        """Write the files of a checkpoint that are not tensors; see carry_small_files."""
        carry_small_files(source, self.directory)
