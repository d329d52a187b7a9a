"""Plan a load: which tensor goes to which device, and where each lies in that device's arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, overload

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.fields import shown
from sllm_store.checkpoint.layout import Arena, plan_arena
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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


class Kind(NamedTuple):
    """What tensors of one element type, shape and stride have in common."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedTensors(Sequence[PlacedTensor]):
    """The tensors of a load, column by column: tens of thousands of them have few kinds.

    `kind` indexes `kinds`, `buffers` are the numbers of the tensors that are buffers. A
    PlacedTensor is made when it is asked for.
    """

    names: Sequence[str] = ()
    kinds: tuple[Kind, ...] = ()
    kind: Sequence[int] = ()
    arena: Sequence[int] = ()
    offset_bytes: Sequence[int] = ()
    buffers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Raise ValueError if the columns do not agree."""
        lengths = [len(column) for column in (self.names, self.kind, self.arena, self.offset_bytes)]
        if len(set(lengths)) > 1:
            raise ValueError(f"columns of tensors differ in length: one is shorter: {lengths}")
        if self.kind and not 0 <= min(self.kind) <= max(self.kind) < len(self.kinds):
            raise ValueError(f"a tensor is of a kind that is not among the {len(self.kinds)}")

    @classmethod
    def of(cls, tensors: Iterable[PlacedTensor]) -> PlacedTensors:
        """Return columns of tensors, in their order."""
        listed = list(tensors)
        kinds, kind = number_kinds([tensor[1:4] for tensor in listed])
        return cls(
            names=[tensor.name for tensor in listed],
            kinds=kinds,
            kind=kind,
            arena=[tensor.arena for tensor in listed],
            offset_bytes=[tensor.offset_bytes for tensor in listed],
            buffers=frozenset(number for number, tensor in enumerate(listed) if tensor.buffer),
        )

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> PlacedTensor: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[PlacedTensor, ...]: ...
    def __getitem__(self, number: int | slice) -> PlacedTensor | tuple[PlacedTensor, ...]:
        """Return one tensor, or those of a slice."""
        if isinstance(number, slice):
            return tuple(map(self.__getitem__, range(*number.indices(len(self)))))
        number = range(len(self))[number]
        return PlacedTensor(
            self.names[number],
            *self.kinds[self.kind[number]],
            self.arena[number],
            self.offset_bytes[number],
            number in self.buffers,
        )

    def __iter__(self) -> Iterator[PlacedTensor]:
        """Yield the tensors in their order."""
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same tensors."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Return the same for equal tensors."""
        return hash(tuple(self))


def number_kinds(
    described: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> tuple[tuple[Kind, ...], list[int]]:
    """Return the kinds of tensors described by dtype, shape and stride, and which each one is."""
    numbers: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
    each = [numbers.setdefault(kind, len(numbers)) for kind in described]
    return tuple(map(Kind._make, numbers)), each


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Everything a load needs to know. `arenas[i]` is memory of `devices[i]`."""

    checkpoint: Checkpoint
    image: Image
    devices: tuple[str, ...]
    arenas: tuple[Arena, ...]
    tensors: PlacedTensors


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
    extents = [tensor[4] for tensor in chosen.tensors]
    if len(devices) == 1:
        wanted_by = [extents]
    else:
        wanted_by = [list(compress(extents, map(i.__eq__, numbers))) for i in range(len(devices))]
    arenas = tuple(
        _image_arena(image)
        if device == CPU and not checkpoint.is_compressed
        else plan_arena(checkpoint, image, wanted)
        for device, wanted in zip(devices, wanted_by, strict=True)
    )
    kinds, kind = number_kinds([tensor[1:4] for tensor in chosen.tensors])
    tensors = PlacedTensors(
        names=chosen.names,
        kinds=kinds,
        kind=kind,
        arena=numbers,
        offset_bytes=_offsets(chosen.tensors, extents, [arenas[number] for number in numbers]),
        buffers=chosen.buffers,
    )
    return LoadPlan(
        checkpoint=checkpoint, image=image, devices=devices, arenas=arenas, tensors=tensors
    )


def _offsets(tensors: list[Tensor], extents: list[int], arenas: list[Arena]) -> list[int]:
    """Return where each tensor's first element is, given its extent and arena."""
    offsets = [arena.offsets[extent] for arena, extent in zip(arenas, extents, strict=True)]
    skipped = [tensor[5] for tensor in tensors]  # Elements of the extent before it.
    if any(skipped):
        for number, (_, dtype, _, _, _, elements) in enumerate(tensors):
            offsets[number] += elements * ITEM_SIZES[dtype] if elements else 0
    return offsets


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is placed, and on which device, column by column."""

    names: list[str]
    tensors: list[Tensor]
    buffers: frozenset[int]
    devices: list[str]


def _choose(checkpoint: Checkpoint, device_map: Mapping[str, str]) -> _Chosen:
    names = [*checkpoint.tensors, *checkpoint.buffers]
    tensors = [*checkpoint.tensors.values(), *checkpoint.buffers.values()]
    buffers = frozenset(range(len(checkpoint.tensors), len(names)))
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
                if number in buffers:
                    buffers |= {len(names)}
                names.append(alias)
                tensors.append(tensors[number])
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
