"""Plan a load: which tensor goes to which device, and where each lies in that device's arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.layout import Arena, plan_arena
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm_store.checkpoint.layout import Image
    from sllm_store.checkpoint.model import Checkpoint, Tensor

CPU = "cpu"


class PlacedTensor(NamedTuple):
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
    chosen = _choose(checkpoint, device_map or {"": CPU})
    devices = tuple(dict.fromkeys(chosen.devices))
    numbers = list(map({device: i for i, device in enumerate(devices)}.__getitem__, chosen.devices))
    extents: list[list[int]] = [[] for _ in devices]
    for tensor, number in zip(chosen.tensors, numbers, strict=True):
        extents[number].append(tensor.extent)
    arenas = tuple(
        _image_arena(image)
        if device == CPU and not checkpoint.is_compressed
        else plan_arena(checkpoint, image, wanted)
        for device, wanted in zip(devices, extents, strict=True)
    )
    offsets = [arena.offsets for arena in arenas]
    columns = zip(chosen.names, chosen.tensors, numbers, chosen.buffers, strict=True)
    tensors = tuple(
        [
            PlacedTensor(
                name,
                dtype,
                shape,
                stride,
                number,
                offsets[number][extent] + (start * ITEM_SIZES[dtype] if start else 0),
                is_buffer,
            )
            for name, (_, dtype, shape, stride, extent, start), number, is_buffer in columns
        ]
    )
    return LoadPlan(
        checkpoint=checkpoint, image=image, devices=devices, arenas=arenas, tensors=tensors
    )


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is placed, and on which device, column by column."""

    names: list[str]
    tensors: list[Tensor]
    buffers: list[bool]
    devices: list[str]


def _choose(checkpoint: Checkpoint, device_map: Mapping[str, str]) -> _Chosen:
    names = [*checkpoint.tensors, *checkpoint.buffers]
    tensors = [*checkpoint.tensors.values(), *checkpoint.buffers.values()]
    buffers = [False] * len(checkpoint.tensors) + [True] * len(checkpoint.buffers)
    if device_map.keys() == {""}:  # So an alias has no place of its own either.
        return _Chosen(names, tensors, buffers, [device_map[""]] * len(names))
    chooser = _Chooser(device_map)
    found = [chooser.find(name) for name in names]
    devices = [device for device in found if device is not None]
    if len(devices) < len(found):
        raise InvalidRequestError(
            f"the device map places no tensor {shown(names[found.index(None)])}: add an entry for "
            "it or for a module above it, or '' for everything else"
        )
    if checkpoint.aliases:
        numbers = {name: number for number, name in enumerate(names)}
        for alias, canonical in checkpoint.aliases.items():
            number, own = numbers[canonical], chooser.find(alias)
            if own is not None and own != devices[number]:
                names.append(alias)
                tensors.append(tensors[number])
                buffers.append(buffers[number])
                devices.append(own)
    return _Chosen(names, tensors, buffers, devices)


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


def _image_arena(image: Image) -> Arena:
    """The CPU's arena is the image: nothing is copied."""
    return Arena(size_bytes=image.size_bytes, offsets=dict(enumerate(image.offsets)), pieces=())
