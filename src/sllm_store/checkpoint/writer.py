"""Save tensors as a checkpoint of ours, whole or not at all."""

from __future__ import annotations

import errno
from bisect import bisect_right
from contextlib import contextmanager
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from sllm_store import native
from sllm_store.checkpoint.checksum import crc32c
from sllm_store.checkpoint.compressed_writer import CompressedWriter, Compression
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.fields import TENSORS_MAX, shown
from sllm_store.checkpoint.index import Entry, dump_entries
from sllm_store.checkpoint.indexed import open_indexed
from sllm_store.checkpoint.layout import ALIGNMENT
from sllm_store.checkpoint.manifest import (
    MANIFEST_FILE,
    RANS,
    Manifest,
    StoredExtent,
    dump_manifest,
)
from sllm_store.checkpoint.model import RAW
from sllm_store.checkpoint.partition_writer import PartitionFiles, PartitionWriter
from sllm_store.checkpoint.reader import require_replaceable
from sllm_store.checkpoint.source import Source, check_source, plan_ranges
from sllm_store.checkpoint.staging import Staging
from sllm_store.errors import InvalidRequestError, LoadCancelledError, StoreError, WriteError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from sllm_store.checkpoint.source import StorageRange

__all__ = ["CheckpointWriter", "Source"]

MAX_SHARD_BYTES = 10 << 30
WRITE_THREADS = 4

_ADVICE = {
    code: f"nothing was published; {advice}"
    for code, advice in {
        errno.ENOSPC: "free some space and save again",
        errno.EFBIG: "raise the limit of a file's size (ulimit -f), or save smaller files with "
        "max_shard_size",
        errno.EDQUOT: "free some of the quota and save again",
        errno.EBUSY: "if it is a mount point, save into a directory below it",
        errno.EXDEV: "if it is a mount point, save into a directory below it",
        errno.EROFS: "save to a file system that can be written to",
    }.items()
}
_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class CheckpointWriter:
    """A context manager: leaving it cleanly publishes the checkpoint, an error leaves no trace.

    Until then the target stays as it was. `directory`, the staging directory, takes the small
    files (config.json, tokenizer.json); files that the target already has are kept, unless there
    is a new one of the same name. With keep_files False they are not, so then only an empty
    directory or a checkpoint without another in it is replaced. Either one write() of everything,
    or add() per tensor where they do not fit into memory at once.

    threads is for writing (4 unless given) and for coding (all processors unless given).

    With compress, 16-bit floats are coded without loss where that makes them smaller; if it does
    nowhere, the checkpoint is an ordinary one. `compression` tells what came of it, afterwards.
    alignment: where storages begin in files that are not compressed; a multiple of the default.
    """

    def __init__(  # noqa: PLR0913 - the options of a save, each with a default.
        self,
        path: Path,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        threads: int | None = None,
        direct: bool = True,
        control: native.Control | None = None,
        keep_files: bool = True,
        compress: bool = False,
        alignment: int = ALIGNMENT,
    ) -> None:
        if max_shard_bytes < 1 or (threads is not None and threads < 1):
            raise InvalidRequestError(
                f"max_shard_bytes is {max_shard_bytes} and threads is {threads}; "
                "both must be positive"
            )
        self._path = path
        self._max_shard_bytes = max_shard_bytes
        self._threads = threads
        self._direct = direct
        self._control = control or native.Control()
        self._keep_files = keep_files
        self._compress = compress
        self._alignment = alignment
        self.compression: Compression | None = None
        self._entries: dict[str, Entry] = {}
        self._buffers: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._storage_offsets: dict[str, int] = {}
        self._written: dict[Hashable, list[tuple[StorageRange, int]]] = {}
        self._bytes_before = self._control.bytes_done
        self._bytes_total = 0
        self._is_used = False

    def __enter__(self) -> Self:
        with _translated(self._path):
            if not self._keep_files:
                require_replaceable(self._path)
            self._staging = Staging(self._path)
        self._files = PartitionFiles(
            self._staging.directory, threads=self._threads or WRITE_THREADS, direct=self._direct
        )
        self._partitions = self._open_partitions()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with _translated(self._path):
                    self._publish()
        finally:
            self._partitions.abort()
            self._staging.close()

    @property
    def directory(self) -> Path:
        """The staging directory."""
        return self._staging.directory

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors on their way to the disk so far; may be read from another thread."""
        return self._control.bytes_done - self._bytes_before

    @property
    def bytes_total(self) -> int:
        """What bytes_written ends at, for the tensors that are known by now."""
        return self._bytes_total

    def write(
        self,
        sources: Iterable[Source],
        *,
        buffers: Iterable[Source] = (),
        aliases: Mapping[str, str] = _NO_ALIASES,
    ) -> None:
        """Write tensors in their order, then non-persistent buffers; shared storage once.

        `aliases` gives further names to tensors: {alias: name}; an alias is not itself stored.
        """
        tensors, others = tuple(sources), tuple(buffers)
        self._store(tensors, others)
        self._aliases.update(aliases)

    def add(self, source: Source, *, buffer: bool = False) -> None:
        """Write one tensor; its memory may be reused on return.

        A view of a storage that an earlier call wrote is shared with it if it lies in that part.
        """
        self._store(() if buffer else (source,), (source,) if buffer else ())

    def _open_partitions(self) -> PartitionWriter | CompressedWriter:
        if self._compress:
            return CompressedWriter(
                self._files,
                max_shard_bytes=self._max_shard_bytes,
                threads=self._threads,
                control=self._control,
            )
        return PartitionWriter(
            self._files,
            max_shard_bytes=self._max_shard_bytes,
            control=self._control,
            alignment=self._alignment,
        )

    def _store(self, tensors: tuple[Source, ...], buffers: tuple[Source, ...]) -> None:
        self._is_used = True
        sources = (*tensors, *buffers)
        self._check(sources)
        ranges = plan_ranges(source for source in sources if self._find(source) is None)
        self._bytes_total += sum(part.size_bytes for part in ranges)
        with _translated(self._path):
            for part in ranges:
                offset = self._partitions.append(part)
                self._written.setdefault(part.storage, []).append((part, offset))
            self._partitions.flush()
        for source in tensors:
            self._entries[source.name] = self._describe(source)
        for source in buffers:
            self._buffers[source.name] = self._describe(source)

    def _check(self, sources: tuple[Source, ...]) -> None:
        names = {*self._entries, *self._buffers} if len(sources) > 1 else set[str]()
        for source in sources:
            check_source(source)
            if source.name in names or source.name in self._entries or source.name in self._buffers:
                raise InvalidRequestError(f"two tensors are named {shown(source.name)}")
            names.add(source.name)
        if len(self._entries) + len(self._buffers) + len(sources) > TENSORS_MAX:
            raise InvalidRequestError(f"a checkpoint has at most {TENSORS_MAX} tensors")

    def _find(self, source: Source) -> tuple[StorageRange, int] | None:
        """Return the range that has a view's bytes, and its global offset."""
        for part, offset in self._written.get(source.storage, ()):
            if part.holds(source):
                return part, offset
        return None

    def _describe(self, source: Source) -> Entry:
        """Return the index entry: the view's own bytes, which a reader without sharing can use."""
        if 0 in source.shape:
            return Entry(0, 0, source.shape, source.stride, source.dtype)
        found = self._find(source)
        assert found is not None, "every view was planned a range"
        part, offset = found
        start, end = source.span
        if start != part.start:
            self._storage_offsets[source.name] = (start - part.start) // ITEM_SIZES[source.dtype]
        return Entry(
            offset + start - part.start, end - start, source.shape, source.stride, source.dtype
        )

    def _publish(self) -> None:
        if not self._is_used:
            raise InvalidRequestError(f"nothing was written to {self._path}")
        self._check_aliases()
        self._partitions.finish()
        extents = self._finished_extents()
        index = dump_entries(self._entries).encode()
        manifest = Manifest(
            partitions=tuple(self._files.sizes),
            extents=tuple(extents),
            index_crc32c=crc32c(index),
            encoding=RANS if any(extent.is_coded for extent in extents) else RAW,
            storage_offsets=self._storage_offsets,
            buffers=self._buffers,
            aliases=self._aliases,
            producer=_producer(),
        )
        (self.directory / manifest.index_file).write_bytes(index)
        (self.directory / MANIFEST_FILE).write_text(dump_manifest(manifest))
        # What readers would refuse must not be published.
        open_indexed(self.directory, root=None)
        self._staging.publish(keep_files=self._keep_files)

    def _finished_extents(self) -> list[StoredExtent]:
        """Return what was written; where nothing was gained by coding, as if none had been tried.

        Then the places of tensors are those of the bytes in the partitions.
        """
        extents = self._partitions.extents
        if not isinstance(self._partitions, CompressedWriter):
            return extents
        self.compression = self._partitions.compression
        if any(extent.is_coded for extent in extents):
            return extents
        starts = [extent.offset for extent in extents]
        for entries in (self._entries, self._buffers):
            for name, entry in entries.items():
                if entry.size_bytes:
                    extent = extents[bisect_right(starts, entry.offset) - 1]
                    offset = entry.offset - extent.offset + extent.stored_offset
                    entries[name] = entry._replace(offset=offset)
        return [extent._replace(offset=extent.stored_offset) for extent in extents]

    def _check_aliases(self) -> None:
        stored = self._entries.keys() | self._buffers.keys()
        for alias, name in self._aliases.items():
            if alias in stored or name not in stored:
                raise InvalidRequestError(
                    f"the alias {shown(alias)} for {shown(name)} must be a new name of a stored "
                    "tensor"
                )


def _producer() -> str:
    try:
        return f"serverless-llm {metadata.version('serverless-llm')}"
    except metadata.PackageNotFoundError:  # Run from a source tree.
        return "serverless-llm"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise what the system refuses as WriteError."""
    try:
        yield
    except StoreError:
        raise
    except native.Cancelled:
        raise LoadCancelledError(f"saving {path} was cancelled; nothing was published") from None
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "nothing was published")
        failure = WriteError(f"cannot save {path}: {error}; {advice}")
        failure.errno = error.errno
        raise failure from error
