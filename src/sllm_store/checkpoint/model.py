"""What a checkpoint is, whatever format its files have: files, extents in them, tensors over them.

Every reader returns a `Checkpoint`, validated; everything above this layer knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sllm_store.checkpoint.dtype import ITEM_SIZES, contiguous_bytes
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


RAW = "raw"  # The encoding of a checkpoint whose extents are the tensors' bytes.


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file that holds tensor bytes, and what it looked like when the checkpoint was opened."""

    path: Path
    size_bytes: int
    mtime_ns: int
    inode: int


class Segment(NamedTuple):
    """A part of a compressed extent as its file has it: entropy-coded, or as it is.

    `offset` is in the file; `crc32c` is of the stored bytes.
    """

    offset: int
    stored_bytes: int
    raw_bytes: int
    crc32c: int

    @property
    def is_coded(self) -> bool:
        """Whether the stored bytes have to be decoded: coding always makes them fewer."""
        return self.stored_bytes < self.raw_bytes


class Extent(NamedTuple):
    """A contiguous byte range of one file: the storage under one or more tensors.

    Of a compressed extent, `size_bytes` and `crc32c` are those of the bytes after decoding, and
    `segments`, empty otherwise, say where the file has its parts. Extents, tensors and the parts of
    plans are tuples, since a checkpoint has tens of thousands.
    """

    file: int
    offset: int
    size_bytes: int
    crc32c: int | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Bytes that the file has of the extent, without padding."""
        if not self.segments:
            return self.size_bytes
        return sum(segment.stored_bytes for segment in self.segments)


class Tensor(NamedTuple):
    """A typed, strided view of an extent. Strides and storage_offset count elements.

    A quantised GGUF tensor has dtype 'gguf:Q4_1' (and so on): its extent is the raw blocks, its
    shape the logical one, row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    extent: int
    storage_offset: int = 0

    @property
    def is_blocks(self) -> bool:
        """Whether the bytes are quantisation blocks instead of elements."""
        return self.dtype.startswith("gguf:")

    def span_bytes(self) -> int:
        """Bytes of the extent from its start to the end of the last element; 0 if empty."""
        if 0 in self.shape:
            return 0
        if self.is_blocks:
            return contiguous_bytes(self.dtype, self.shape)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return (self.storage_offset + last + 1) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A validated checkpoint. `tensors` is the state dict, in its order."""

    path: Path
    format: str
    files: tuple[DataFile, ...]
    extents: tuple[Extent, ...]
    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    encoding: str = RAW

    @property
    def is_compressed(self) -> bool:
        """Whether some extents have to be decoded."""
        return self.encoding != RAW

    @property
    def size_bytes(self) -> int:
        """Bytes of all extents, each counted once."""
        return sum(extent.size_bytes for extent in self.extents)

    @property
    def stored_bytes(self) -> int:
        """What the files have of them, without padding."""
        return sum(extent.stored_bytes for extent in self.extents)

    @property
    def directory(self) -> Path:
        """Where the small files (config, tokenizer) are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def version(self) -> str:
        """What tells this state of the data files from any other."""
        return " ".join(f"{file.inode}:{file.size_bytes}:{file.mtime_ns}" for file in self.files)

    def all_tensors(self) -> dict[str, Tensor]:
        """The state dict's tensors and the non-persistent buffers."""
        return {**self.tensors, **self.buffers}

    def require_unchanged(self) -> None:
        """Raise InvalidCheckpointError if a data file changed since the checkpoint was opened."""
        for file in self.files:
            try:
                status = file.path.stat()
            except OSError as error:
                raise InvalidCheckpointError(f"{file.path}: gone since it was opened") from error
            seen = (status.st_size, status.st_mtime_ns, status.st_ino)
            if seen != (file.size_bytes, file.mtime_ns, file.inode):
                raise InvalidCheckpointError(
                    f"{file.path}: changed since it was opened; open again"
                )


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return row-major strides, in elements, as torch gives them (a zero dimension counts as 1)."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
