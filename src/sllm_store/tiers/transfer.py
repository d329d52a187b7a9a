"""Cut a load into chunks and hand it to the native core as one static plan of steps.

A load moves an image, chunk by chunk: file -> host chunk -> devices. With R bytes to read over a
disk of D bytes/s and C bytes to copy over a link of L bytes/s, reading and copying overlap, so the
time is max(R/D, C/L) plus one chunk; chunks only have to be large enough for the link (16 MiB
copies run at 99 % of a PCIe 5 link) and numerous enough to overlap.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sllm_store import native
from sllm_store.disks import disk_memory, learning, read_use
from sllm_store.errors import ChecksumError, LoadCancelledError, ReadError
from sllm_store.tiers.device import device_error
from sllm_store.units import div_ceil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sllm_store.checkpoint.layout import Arena, Decode, Image, Piece
    from sllm_store.checkpoint.model import Checkpoint


HOST_DEVICE = -1  # The native core's number of ordinary memory, where it expects a GPU's.


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Memory that receives pieces of the image, and segments of it decoded.

    Addresses are the device's, which may be HOST_DEVICE. `arena` says which extents it gets whole,
    where it is known. `via` names GPUs whose links bytes may take too.
    """

    device: int
    address: int
    pieces: tuple[Piece, ...]
    decodes: tuple[Decode, ...] = ()
    arena: Arena | None = None
    via: tuple[int, ...] = ()


@dataclass(slots=True)
class ChunkedImage:
    """An image cut into chunks of `chunk_bytes`, with what to read for each.

    reads[chunk] lists (file, file_offset, size, offset in the chunk).
    """

    image: Image
    chunk_bytes: int
    reads: list[list[tuple[int, int, int, int]]]

    @property
    def chunks_total(self) -> int:
        """Chunks that the image takes, the last one perhaps partly used."""
        return len(self.reads)


def cut_image(image: Image, chunk_bytes: int) -> ChunkedImage:
    """Assign every run of an image to the chunks that it crosses."""
    reads: list[list[tuple[int, int, int, int]]] = [
        [] for _ in range(div_ceil(image.size_bytes, chunk_bytes))
    ]
    for file, file_offset, size_bytes, image_offset in image.runs:
        chunk, offset = divmod(image_offset, chunk_bytes)
        if offset + size_bytes <= chunk_bytes:  # As most of many small ones.
            reads[chunk].append((file, file_offset, size_bytes, offset))
        else:
            for part, done, size, at in _cut(image_offset, size_bytes, chunk_bytes):
                reads[part].append((file, file_offset + done, size, at))
    return ChunkedImage(image=image, chunk_bytes=chunk_bytes, reads=reads)


def cut_pieces(
    targets: Sequence[Target | Arena], chunk_bytes: int, chunks_total: int
) -> list[list[tuple[int, int, int, int]]]:
    """Return per chunk the copies (target, device_offset, size, offset in the chunk)."""
    copies: list[list[tuple[int, int, int, int]]] = [[] for _ in range(chunks_total)]
    for index, target in enumerate(targets):
        for image_offset, size_bytes, arena_offset in target.pieces:
            for chunk, done, size, offset in _cut(image_offset, size_bytes, chunk_bytes):
                copies[chunk].append((index, arena_offset + done, size, offset))
    return copies


class Moves(NamedTuple):
    """What goes from one chunk to targets, in the native core's form without the step.

    copies:  (target, device_offset, size, offset in the chunk)
    decodes: (target, device_offset, raw size, stored size, offset in the chunk)
    """

    copies: list[tuple[int, int, int, int]]
    decodes: list[tuple[int, int, int, int, int]]

    @property
    def is_any(self) -> bool:
        """Whether something goes anywhere."""
        copies, decodes = self
        return bool(copies or decodes)

    @property
    def first_target(self) -> int:
        """The first target that gets something, -1 if none does."""
        return min([moves[0][0] for moves in self if moves], default=-1)


NO_MOVES = Moves([], [])


def cut_targets(targets: Sequence[Target | Arena], chunked: ChunkedImage) -> list[Moves]:
    """Return what each chunk of an image gives to targets."""
    moves = [
        Moves(copies, [])
        for copies in cut_pieces(targets, chunked.chunk_bytes, chunked.chunks_total)
    ]
    for index, target in enumerate(targets):
        for image_offset, stored_bytes, raw_bytes, arena_offset in target.decodes:
            chunk, offset = divmod(image_offset, chunked.chunk_bytes)
            assert offset + stored_bytes <= chunked.chunk_bytes, "the image keeps segments whole"
            moves[chunk].decodes.append((index, arena_offset, raw_bytes, stored_bytes, offset))
    return moves


def _cut(start: int, size_bytes: int, chunk_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the parts of a range: chunk, offset in the range, size, offset in the chunk."""
    done = 0
    while done < size_bytes:
        chunk, offset = divmod(start + done, chunk_bytes)
        size = min(chunk_bytes - offset, size_bytes - done)
        yield chunk, done, size, offset
        done += size


@dataclass(slots=True)
class TransferPlan:
    """Steps, reads, copies and decodes in the native core's form; see native.run_transfer."""

    steps: list[tuple[int, int]] = field(default_factory=list)
    reads: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    copies: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    decodes: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    parsed: native.Reads | None = None  # The same reads, for a plan that is used more than once.

    def add(
        self,
        address: int,
        *,
        after: int = -1,
        reads: Sequence[tuple[int, int, int, int]] = (),
        moves: Moves = NO_MOVES,
    ) -> int:
        """Add a step over the buffer at `address`; return its index."""
        copies, decodes = moves
        index = len(self.steps)
        self.steps.append((address, after))
        self.reads += [(index, *read) for read in reads]
        self.copies += [(index, *copy) for copy in copies]
        if decodes:
            self.decodes += [(index, *decode) for decode in decodes]
        return index

    def kept(self) -> TransferPlan:
        """Return the same plan, to be used more than once: nothing may be added any more."""
        return replace(self, parsed=native.Reads(self.reads))

    def moved_to(self, address: int) -> TransferPlan:
        """Return a plan whose buffers are at offsets from 0, with `address` for that."""
        return replace(self, steps=[(address + offset, after) for offset, after in self.steps])

    @property
    def bytes_total(self) -> int:
        """What `bytes_done` ends at: bytes that arrive, or bytes read where nothing is copied."""
        if not self.copies and not self.decodes:
            return sum(entry[3] for entry in self.reads)
        return sum(entry[3] for entry in (*self.copies, *self.decodes))


def open_files(checkpoint: Checkpoint) -> list[native.File]:
    """Open a checkpoint's data files; raise ReadError naming the one that cannot be."""
    checkpoint.require_unchanged()
    try:
        return [native.File(str(file.path)) for file in checkpoint.files]
    except native.NativeError as error:
        raise ReadError(f"cannot open {error.filename}: {error.strerror}") from error


class Beside(NamedTuple):
    """What the thread that runs a plan calls: `meanwhile` once, then `watch` every now and then."""

    meanwhile: Callable[[], None] | None = None
    watch: Callable[[], None] | None = None


NOTHING = Beside()


def run_plan(  # noqa: PLR0913 - a transfer's choices, by name
    plan: TransferPlan,
    files: Sequence[native.File],
    targets: Sequence[Target],
    *,
    mode: str,
    threads: int,
    control: native.Control,
    stock: native.LinkStock | None = None,
    beside: Beside = NOTHING,
) -> native.TransferReport:
    """Run a plan to its end, or raise the store's error for what went wrong.

    What is called beside it may raise anything: the plan has ended then. What its reads teach about
    the disk is remembered for the next ones, and what its links need of GPUs is kept in `stock`.
    """
    try:
        with _reading(plan, files, mode) as tuner:
            return native.run_transfer(
                files,
                plan.steps,
                plan.reads if plan.parsed is None else plan.parsed,
                plan.copies,
                [(target.device, target.address, target.via) for target in targets],
                decodes=plan.decodes,
                mode=mode,
                threads=threads,
                control=control,
                tuner=tuner,
                stock=stock,
                meanwhile=beside.meanwhile,
                watch=beside.watch,
            )
    except native.Cancelled as error:
        raise LoadCancelledError("the load was cancelled before it ended") from error
    except native.NativeError as error:
        raise read_error(error) from error
    except native.CudaError as error:
        raise device_error(error, "the copy to the GPU failed") from error


def read_error(error: native.NativeError) -> ReadError | ChecksumError:
    """Return the store's error for what the native core says of reads."""
    if error.errno == errno.EBADMSG:
        return ChecksumError(
            f"{error.strerror}: verify the checkpoint, and restore its file or save it again"
        )
    what = f"reading {error.filename}" if error.filename else "the transfer"
    return ReadError(f"{what} failed: {error.strerror}")


def _reading(
    plan: TransferPlan, files: Sequence[native.File], mode: str
) -> AbstractContextManager[native.Tuner | None]:
    """Learn from a plan's reads, if it has any that may go to a disk."""
    if not plan.reads or mode == "buffered":
        return nullcontext()
    path = Path(files[plan.reads[0][1]].path)
    return learning(disk_memory(os.environ), path, read_use(mode))


@dataclass(slots=True)
class ImageMap:
    """Finds where bytes of the checkpoint's concatenated files are in its image."""

    starts: list[int]
    runs: list[tuple[int, int, int]]

    @classmethod
    def of(cls, checkpoint: Checkpoint, image: Image) -> ImageMap:
        """Index the image's runs by logical offset: files laid end to end."""
        bases: list[int] = []
        total = 0
        for file in checkpoint.files:
            bases.append(total)
            total += file.size_bytes
        runs = sorted(
            (bases[run.file] + run.file_offset, run.size_bytes, run.image_offset)
            for run in image.runs
        )
        return cls(starts=[start for start, _, _ in runs], runs=runs)

    def find(self, offset: int, size_bytes: int) -> list[tuple[int, int, int]]:
        """Return (image_offset, size, offset in the range) for the bytes that the image has.

        Bytes between the runs are padding, which nobody reads.
        """
        found = []
        index = max(bisect_right(self.starts, offset) - 1, 0)
        while index < len(self.runs) and self.starts[index] < offset + size_bytes:
            start, length, image_offset = self.runs[index]
            low, high = max(start, offset), min(start + length, offset + size_bytes)
            if low < high:
                found.append((image_offset + low - start, high - low, low - offset))
            index += 1
        return found
