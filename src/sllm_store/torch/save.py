"""save_dict: a state dict as a checkpoint, with every storage written once.

Tensors on the host are written from where they are. Those on a device are copied to the host
storage by storage, the next one while one is written: B bytes take what the disk needs for them, as
long as the link is faster, and memory for two storages.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.dlpack import from_dlpack

from sllm_store import native
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.source import plan_ranges
from sllm_store.checkpoint.writer import CheckpointWriter, Source
from sllm_store.errors import InvalidRequestError
from sllm_store.native import Control
from sllm_store.units import parse_size

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

PROGRESS_INTERVAL_S = 0.1
log = logging.getLogger(__name__)

_NOT_YET = 1  # Address of a storage that is not on the host so far.
_SLOTS = 2  # One is written, and one is copied to.


def save_dict(
    state_dict: Mapping[str, torch.Tensor],
    model_path: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "10GB",
    compress: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save tensors of any dtype and device as a checkpoint at model_path, whole or not at all.

    Views keep their strides and offsets, and what shares memory still does when it is loaded. The
    tensors are neither moved nor changed. No file is larger than max_shard_size, unless one
    storage is. With compress, float16 and bfloat16 tensors are coded without loss where that makes
    them smaller; they load as before, with the same bytes. on_progress gets (bytes done, bytes in
    all). Raises InvalidRequestError naming the key of a value that cannot be saved.
    """
    write_checkpoint(
        state_dict,
        model_path,
        max_shard_size=max_shard_size,
        compress=compress,
        on_progress=on_progress,
    )


def write_checkpoint(  # noqa: PLR0913 - what both kinds of save have, each with a default.
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    buffers: Mapping[str, torch.Tensor] | None = None,
    max_shard_size: int | str = "10GB",
    compress: bool = False,
    write_small_files: Callable[[Path], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save tensors, buffers outside of the state dict, and whatever small files belong to them.

    write_small_files is given the directory that is about to become the checkpoint.
    """
    pieces = [_Piece(name, value, buffer=False) for name, value in tensors.items()]
    pieces += [_Piece(name, value, buffer=True) for name, value in (buffers or {}).items()]
    if not pieces:
        raise InvalidRequestError("there are no tensors to save")
    max_shard_bytes = _shard_bytes(max_shard_size)
    total_bytes = sum(
        part.end - part.start for part in plan_ranges(piece.source for piece in pieces)
    )
    control = Control()
    with CheckpointWriter(
        Path(path), max_shard_bytes=max_shard_bytes, control=control, compress=compress
    ) as writer:
        if write_small_files is not None:
            write_small_files(writer.directory)
        if on_progress is None:
            _write(writer, pieces)
        else:
            _write_watched(writer, pieces, control, lambda done: on_progress(done, total_bytes))
    if writer.compression is not None:
        log.info("saved %s: %s", path, writer.compression.summary)


class _Piece:
    """A tensor to save, and the description of it that the writer wants."""

    def __init__(self, name: str, value: Any, *, buffer: bool) -> None:
        tensor = _require_plain(name, value)
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr() or name)
        on_host = tensor.device.type == "cpu"
        self.tensor = tensor
        self.buffer = buffer
        self.source = Source(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            storage_offset=int(tensor.storage_offset()),
            storage=key,
            address=storage.data_ptr() if on_host else _NOT_YET,
            size_bytes=storage.nbytes(),
        )

    @property
    def is_staged(self) -> bool:
        """Whether the bytes have to be copied to the host first."""
        return self.source.address == _NOT_YET and self.source.span[1] > 0


def _require_plain(name: object, value: object) -> torch.Tensor:
    """Return a tensor whose bytes are its value; raise InvalidRequestError naming the key."""
    if not isinstance(name, str):
        raise InvalidRequestError(f"the name {name!r} of a tensor is not a string")
    if not isinstance(value, torch.Tensor):
        raise InvalidRequestError(
            f"{name!r} is a {type(value).__name__}, not a tensor: leave it out, or save it in a "
            "file of its own"
        )
    tensor = value.detach()
    why = _why_not_plain(tensor)
    if why:
        raise InvalidRequestError(f"{name!r} {why}")
    return tensor.resolve_conj().resolve_neg()


def _why_not_plain(tensor: torch.Tensor) -> str | None:
    """Return why the bytes of a tensor's storage are not its value, if they are not."""
    known = str(tensor.dtype).removeprefix("torch.") in ITEM_SIZES
    reasons = {
        "is a nested tensor: save its components, or its padded form": tensor.is_nested,
        f"has the layout {tensor.layout}: save its to_dense(), or its components": (
            tensor.layout != torch.strided
        ),
        "is quantised by torch.quantize: save its int_repr(), scales and zero points": (
            tensor.is_quantized
        ),
        "is on the meta device, so it has no value: load the model first": tensor.is_meta,
        f"is a {type(tensor).__name__}, which wraps other tensors: save those": (
            is_traceable_wrapper_subclass(tensor)
        ),
        f"has the dtype {tensor.dtype}, which the format does not know": not known,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _write(writer: CheckpointWriter, pieces: Iterable[_Piece]) -> None:
    """Write everything: at once where it is on the host, else storage by storage."""
    pieces = list(pieces)
    if not any(piece.is_staged for piece in pieces):
        _write_together(writer, pieces)
        return
    groups: dict[object, list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.source.storage, []).append(piece)
    spans = {key: _Span(group) for key, group in groups.items() if any(p.is_staged for p in group)}
    addresses = _copy_ahead(list(spans.values()))
    for key, group in groups.items():
        if key in spans:
            address = next(addresses)
            for piece in group:
                # The storage would begin earlier; only what views span is read.
                piece.source = replace(piece.source, address=address - spans[key].start)
        _write_together(writer, group)


class _Span:
    """What the views of one device storage span."""

    def __init__(self, group: list[_Piece]) -> None:
        ends = [piece.source.span for piece in group if piece.is_staged]
        self.start = min(first for first, _ in ends)
        self.size_bytes = max(last for _, last in ends) - self.start
        self.device = group[0].tensor.device
        self._storage = group[0].tensor.untyped_storage()

    def begin_copy(self, host: torch.Tensor) -> torch.cuda.Event | None:
        """Copy to the host; on return that is done, or it will be by the time of an event."""
        on_device = torch.empty(0, dtype=torch.uint8, device=self.device)
        on_device.set_(self._storage, self.start, (self.size_bytes,), (1,))
        may_go_on = self.device.type == "cuda"
        host[: self.size_bytes].copy_(on_device, non_blocking=may_go_on)
        if not may_go_on:
            return None
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        return done


def _copy_ahead(spans: Sequence[_Span]) -> Iterator[int]:
    """Yield where each span is on the host, until the next is asked for; that is on its way."""
    memory = [_host_memory(spans[turn::_SLOTS]) for turn in range(min(_SLOTS, len(spans)))]
    coming = spans[0].begin_copy(memory[0])
    try:
        for number in range(len(spans)):
            done, after = coming, number + 1
            if after < len(spans):
                coming = spans[after].begin_copy(memory[after % _SLOTS])
            if done is not None:
                done.synchronize()
            yield memory[number % _SLOTS].data_ptr()
    finally:
        if coming is not None:
            coming.synchronize()  # Memory that a copy still goes to must not go.


def _host_memory(spans: Sequence[_Span]) -> torch.Tensor:
    """Return memory for any of some spans: pinned, so that a copy goes on by itself, if it can."""
    largest = max(spans, key=lambda span: span.size_bytes)
    if largest.device.type == "cuda":
        try:
            native.device_memory(
                largest.device.index
            )  # So that it is pinned in this GPU's context.
            return from_dlpack(native.HostBuffer(largest.size_bytes, pinned=True))
        except native.CudaError as error:
            log.info("a save stages in memory that is not pinned, which is slower: %s", error)
    return from_dlpack(native.HostBuffer(largest.size_bytes))


def _write_together(writer: CheckpointWriter, pieces: list[_Piece]) -> None:
    writer.write(
        [piece.source for piece in pieces if not piece.buffer],
        buffers=[piece.source for piece in pieces if piece.buffer],
    )


def _write_watched(
    writer: CheckpointWriter,
    pieces: list[_Piece],
    control: Control,
    on_progress: Callable[[int], None],
) -> None:
    """Write in another thread, and report from this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sllm-save") as executor:
        writing = executor.submit(_write, writer, pieces)
        try:
            done = 0
            while not writing.done():
                done = control.wait(done, PROGRESS_INTERVAL_S)
                on_progress(done)
            writing.result()
        except BaseException:
            control.cancel()
            raise
    on_progress(control.bytes_done)


def _shard_bytes(max_shard_size: int | str) -> int:
    try:
        return parse_size(max_shard_size)
    except ValueError as error:
        raise InvalidRequestError(f"max_shard_size: {error}") from error
