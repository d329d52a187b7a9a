"""The loaders that `sllm-store bench` times, and the proof that they delivered every byte."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sllm_store import native
from sllm_store.checkpoint.decoding import read_extent
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.errors import ChecksumError
from sllm_store.stream import load_checkpoint
from sllm_store.tiers.device import device_ordinal
from sllm_store.tiers.transfer import open_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sllm_store.checkpoint.loaded import ArenaMemory, Loaded
    from sllm_store.checkpoint.model import Checkpoint, Extent, Tensor
    from sllm_store.client import SllmStoreClient

_THREADS = 4
_BUFFER_BYTES = 16 << 20


class Load(Protocol):
    """A finished load. It keeps the memory of its tensors."""

    tier: str

    def addresses(self) -> Mapping[str, int]:
        """Return where the bytes of each tensor begin, in host memory."""
        ...


class Loader(Protocol):
    """Something that loads the checkpoint."""

    name: str

    def forget(self) -> None:
        """Drop what it keeps of the checkpoint in memory."""
        ...

    def predict(self) -> float | None:
        """Return how many seconds a load would take now, None if nobody can say."""
        ...

    def load(self) -> Load:
        """Load; return once the tensors can be used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load. read_through_s also has a checksum of all bytes; predicted_s was said before."""

    tier: str
    predicted_s: float | None
    load_s: float
    read_through_s: float
    still_cached_bytes: int


class Bench:
    """Brings the machine into a state, times a load, and checks what it delivered."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the checkpoint once, for the checksums of its tensors."""
        self._warm: Loader | None = None
        self._checkpoint = checkpoint
        self._files = open_files(checkpoint)
        self._expected = _read_tensors(checkpoint, self._files)

    def measure(self, loader: Loader, *, cold: bool) -> Measured:
        """Time one load; raise ChecksumError naming a tensor whose bytes differ."""
        if cold:
            self._cool(loader)
        elif self._warm is not loader:
            self._fill_page_cache()
            loader.load()
        self._warm = None if cold else loader
        cached = sum(file.resident_bytes(0, file.size) for file in self._files if file.size)
        predicted_s = loader.predict()
        started_s = time.perf_counter()
        loaded = loader.load()
        load_s = time.perf_counter() - started_s
        self._check(loader.name, loaded.addresses())
        return Measured(
            tier=loaded.tier,
            predicted_s=predicted_s,
            load_s=load_s,
            read_through_s=time.perf_counter() - started_s,
            still_cached_bytes=cached if cold else 0,
        )

    def _check(self, loader: str, addresses: Mapping[str, int]) -> None:
        def is_right(tensor: _OnDisk) -> bool:
            return native.crc32c(addresses[tensor.name], tensor.size_bytes) == tensor.crc32c

        with ThreadPoolExecutor(_THREADS) as executor:
            rights = executor.map(is_right, self._expected)
            for tensor, right in zip(self._expected, rights, strict=True):
                if not right:
                    raise ChecksumError(
                        f"{loader} loaded other bytes of {tensor.name} than "
                        f"{self._checkpoint.path} has"
                    )

    def _cool(self, loader: Loader) -> None:
        loader.forget()
        os.sync()  # Dirty pages cannot be dropped.
        for file in self._files:
            file.evict()

    def _fill_page_cache(self) -> None:
        buffer = native.HostBuffer(_BUFFER_BYTES)
        for file in self._files:
            for offset in range(0, file.size, _BUFFER_BYTES):
                file.read_into(offset, buffer.address, min(_BUFFER_BYTES, file.size - offset))


class Store:
    """Loads through a running store."""

    name = "store"

    def __init__(self, client: SllmStoreClient, model: str, device: str) -> None:
        """Load a model that the store serves."""
        self._client, self._model, self._device = client, model, device

    def forget(self) -> None:
        """Let the store's pool drop it; InUseError if somebody else uses it."""
        self._client.unload_from_cpu(self._model)

    def predict(self) -> float | None:
        """Ask the store."""
        return self._client.estimate_load(self._model, {"": self._device}).seconds

    def load(self) -> Load:
        """Load it by the store."""
        return _Arenas(self._client.load(self._model, {"": self._device}))


class InProcess:
    """Loads in this process."""

    name = "in-process"

    def __init__(self, path: Path, device: str) -> None:
        """Load what is at the path."""
        self._path, self._device = path, device

    def forget(self) -> None:
        """Nothing is kept between loads."""

    def predict(self) -> float | None:
        """Nobody here learns how long loads take."""
        return None

    def load(self) -> Load:
        """Load it here."""
        return _Arenas(load_checkpoint(self._path, {"": self._device}))


class Safetensors:
    """Loads with the safetensors package's own load_file, into PyTorch tensors."""

    name = "safetensors"

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        """Load the files of a safetensors checkpoint; imports torch, which is not timed."""
        import torch

        self._paths = [file.path for file in checkpoint.files]
        self._device = "cpu" if device == "cpu" else f"cuda:{device_ordinal(device)}"
        if device != "cpu":
            torch.zeros(1, device=self._device)

    def forget(self) -> None:
        """Nothing is kept between loads."""

    def predict(self) -> float | None:
        """Nobody here learns how long loads take."""
        return None

    def load(self) -> Load:
        """Load file by file."""
        import torch
        from safetensors.torch import load_file

        tensors: dict[str, Any] = {}
        for path in self._paths:
            tensors |= load_file(path, device=self._device)
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return _Tensors(tensors)


class _Arenas:
    """A load of ours."""

    def __init__(self, loaded: Loaded) -> None:
        self.tier = loaded.tier
        self._loaded = loaded
        self._copies: list[native.HostBuffer] = []

    def addresses(self) -> Mapping[str, int]:
        bases = [self._host_address(arena) for arena in self._loaded.arenas]
        return {
            tensor.name: bases[tensor.arena] + tensor.offset_bytes
            for tensor in self._loaded.tensors
        }

    def _host_address(self, arena: ArenaMemory | None) -> int:
        if arena is None:
            return 0
        if isinstance(arena, native.DeviceBuffer):
            copy = native.HostBuffer(arena.size)
            native.copy_from_device(arena.device, arena.address, copy.address, arena.size)
            self._copies.append(copy)
            return copy.address
        assert isinstance(arena, native.HostBuffer | native.PoolMapping)
        return arena.address


class _Tensors:
    """A load into PyTorch tensors."""

    tier = "file"

    def __init__(self, tensors: dict[str, Any]) -> None:
        self._tensors = tensors

    def addresses(self) -> Mapping[str, int]:
        self._tensors = {name: tensor.cpu() for name, tensor in self._tensors.items()}
        return {name: tensor.data_ptr() for name, tensor in self._tensors.items()}


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """What a tensor spans in its file."""

    name: str
    size_bytes: int
    crc32c: int


def _read_tensors(checkpoint: Checkpoint, files: list[native.File]) -> list[_OnDisk]:
    """Return the checksum of every tensor's bytes, read from the files."""
    by_file: dict[int, list[str]] = {}
    coded: dict[int, list[str]] = {}
    tensors = checkpoint.all_tensors()
    for name, tensor in tensors.items():
        extent = checkpoint.extents[tensor.extent]
        if extent.segments:
            coded.setdefault(tensor.extent, []).append(name)
        else:
            by_file.setdefault(extent.file, []).append(name)
    read: list[_OnDisk] = []
    for number, names in coded.items():
        extent = checkpoint.extents[number]
        read += _read_decoded(extent, files[extent.file], [tensors[name] for name in names])
    for number, names in by_file.items():
        ranges = [_range(checkpoint, tensors[name]) for name in names]
        checksums = native.checksum_ranges(
            files[number], ranges, mode="auto", threads=_THREADS, control=native.Control()
        )
        read += [
            _OnDisk(name, size_bytes, checksum)
            for name, (_, size_bytes), checksum in zip(names, ranges, checksums, strict=True)
        ]
    return read


def _read_decoded(extent: Extent, file: native.File, tensors: list[Tensor]) -> Iterator[_OnDisk]:
    """Yield the checksum of every tensor of a compressed extent."""
    memory = native.HostBuffer(extent.size_bytes)
    read_extent(file, extent, memory.address)
    for tensor in tensors:
        start, size_bytes = _span(tensor)
        checksum = native.crc32c(memory.address + start, size_bytes)
        yield _OnDisk(tensor.name, size_bytes, checksum)


def _range(checkpoint: Checkpoint, tensor: Tensor) -> tuple[int, int]:
    """Return the offset and size of a tensor's bytes in its file."""
    start, size_bytes = _span(tensor)
    return checkpoint.extents[tensor.extent].offset + start, size_bytes


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the offset and size of a tensor's bytes in its extent."""
    start = 0 if tensor.is_blocks else tensor.storage_offset * ITEM_SIZES[tensor.dtype]
    return start, max(tensor.span_bytes() - start, 0)
