"""Plan a load: which tensor goes to which device, and where each lies in that device's arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.layout import Arena, plan_arena
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sllm_store.checkpoint.layout import Image
    from sllm_store.checkpoint.model import Checkpoint, Tensor

CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTensor:
    """A tensor of a load. `offset_bytes` is where its first element is in its arena."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    arena: int
    offset_bytes: int
    buffer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Everything a load needs to know. `arenas[i]` is memory of `devices[i]`."""

    checkpoint: Checkpoint
    image: Image
    devices: tuple[str, ...]
    arenas: tuple[Arena, ...]
    tensors: tuple[PlacedTensor, ...]


def plan_load(checkpoint: Checkpoint, image: Image, device_map: Mapping[str, str]) -> LoadPlan:
    """Place every tensor by the longest entry of `device_map` that names it or a module above it.

    The entry '' matches all; an empty map puts everything on the CPU, whose arena is the image
    itself unless that is compressed. An alias follows its tensor, and is placed by itself only
    where the map sends it to another device. Raises InvalidRequestError naming a tensor that no
    entry matches.
    """
    if checkpoint.is_compressed:
        raise InvalidRequestError(
            f"{checkpoint.path} is compressed, and this version cannot load that yet: save it "
            "without --compress"
        )
    chooser = _Chooser(device_map or {"": CPU})
    placed = list(_place(checkpoint, chooser))
    devices = tuple(dict.fromkeys(device for *_, device in placed))
    extents: list[set[int]] = [set() for _ in devices]
    numbers = {device: number for number, device in enumerate(devices)}
    for _, tensor, _, device in placed:
        extents[numbers[device]].add(tensor.extent)
    arenas = tuple(
        _image_arena(image)
        if device == CPU and not checkpoint.is_compressed
        else plan_arena(checkpoint, image, wanted)
        for device, wanted in zip(devices, extents, strict=True)
    )
    return LoadPlan(
        checkpoint=checkpoint,
        image=image,
        devices=devices,
        arenas=arenas,
        tensors=tuple(
            PlacedTensor(
                name=name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                stride=tensor.stride,
                arena=numbers[device],
                offset_bytes=arenas[numbers[device]].offsets[tensor.extent] + _start_bytes(tensor),
                buffer=is_buffer,
            )
            for name, tensor, is_buffer, device in placed
        ),
    )


class _Chooser:
    """Finds the device of a name, asking for each module once."""

    def __init__(self, device_map: Mapping[str, str]) -> None:
        self._devices: dict[str, str | None] = {"": None, **device_map}

    def find(self, name: str) -> str | None:
        """Return the device of the longest matching entry, or None."""
        prefix, missed = name, []
        while prefix not in self._devices:
            missed.append(prefix)
            prefix = prefix.rpartition(".")[0]
        device = self._devices[prefix]
        for module in missed[1:]:  # The name itself is asked for once.
            self._devices[module] = device
        return device


def _place(checkpoint: Checkpoint, chooser: _Chooser) -> Iterator[tuple[str, Tensor, bool, str]]:
    """Yield (name, tensor, is a buffer, device)."""
    by_name: dict[str, tuple[Tensor, bool, str]] = {}
    for tensors, is_buffer in ((checkpoint.tensors, False), (checkpoint.buffers, True)):
        for name, tensor in tensors.items():
            device = chooser.find(name)
            if device is None:
                raise InvalidRequestError(
                    f"the device map places no tensor {shown(name)}: add an entry for it or for a "
                    "module above it, or '' for everything else"
                )
            if checkpoint.aliases:
                by_name[name] = (tensor, is_buffer, device)
            yield name, tensor, is_buffer, device
    for alias, canonical in checkpoint.aliases.items():
        tensor, is_buffer, device = by_name[canonical]
        own = chooser.find(alias)
        if own is not None and own != device:
            yield alias, tensor, is_buffer, own


def _start_bytes(tensor: Tensor) -> int:
    return tensor.storage_offset * ITEM_SIZES[tensor.dtype] if tensor.storage_offset else 0


def _image_arena(image: Image) -> Arena:
    """The CPU's arena is the image: nothing is copied."""
    return Arena(size_bytes=image.size_bytes, offsets=dict(enumerate(image.offsets)), pieces=())
