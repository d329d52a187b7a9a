"""The device tier: arenas that the server keeps in GPU memory, one copy for many processes.

A resident arena is keyed by model, version, GPU and set of extents. A holder (a client's lease, a
load that fills it or copies from it) keeps it; so does a pin. What nobody holds stays while all
such arenas of its GPU fit in `kept_bytes`, and goes, least recently used first, when they do not
or when an allocation needs the room.

One lock guards the books. Memory is freed outside of it, in a thread of its own: freeing waits for
the device.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sllm_store.errors import DeadlineError, InUseError, InvalidRequestError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from concurrent.futures import Executor

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.tiers.host import Patience

_GAP_MAX = 4096  # Bytes between two extents that one copy may take along.


class DeviceMemory(Protocol):
    """An allocation on a GPU, freed with its last reference."""

    @property
    def device(self) -> int: ...
    @property
    def address(self) -> int: ...
    def ipc_handle(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaKey:
    """What tells one resident arena from another. `gpu` is a UUID."""

    model: str
    version: str
    gpu: str
    extents: frozenset[int]


@dataclass(slots=True, eq=False)
class ResidentArena:
    """One arena's books. `memory` is None until it is filled, and again when it is gone."""

    key: ArenaKey
    arena: Arena
    memory: DeviceMemory | None = None
    ipc_handle: bytes = b""
    filling: bool = True
    pinned: bool = False
    retired: bool = False
    used_at: int = 0
    holders: Counter[str] = field(default_factory=Counter)

    @property
    def size_bytes(self) -> int:
        """Bytes of GPU memory."""
        return self.arena.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaState:
    """A resident arena as it is listed."""

    gpu: str
    size_bytes: int
    pinned: bool
    leases: int


class DeviceTier:
    """The books of all resident arenas. Their memory is allocated and filled by who enters."""

    def __init__(self, kept_bytes: int, frees: Executor) -> None:
        """Keep up to kept_bytes of what nobody holds per GPU; `frees` has one thread, for that."""
        self.kept_bytes = kept_bytes
        self._frees = frees
        self._arenas: dict[ArenaKey, ResidentArena] = {}
        self._retired: list[ResidentArena] = []
        self._uses = 0
        self._changed = threading.Condition()

    def try_hold(self, keys: Sequence[ArenaKey], holder: str) -> list[ResidentArena] | None:
        """Hold all of these arenas if all are filled; None, without waiting, if one is not."""
        with self._changed:
            found = [self._arenas.get(key) for key in keys]
            filled = [arena for arena in found if arena is not None and not arena.filling]
            if len(filled) < len(keys):
                return None
            for arena in filled:
                self._hold(arena, holder)
            return filled

    def enter(
        self, key: ArenaKey, arena: Arena, *, holder: str, patience: Patience
    ) -> tuple[ResidentArena, bool]:
        """Hold an arena; return it, and whether the caller has to fill it.

        Whoever has to ends with commit or abandon; others wait for that. Raises DeadlineError when
        it takes long. Who enters several does it in the order of their GPUs.
        """
        with self._changed:
            while True:
                found = self._arenas.get(key)
                if found is None or not found.filling:
                    break
                patience.require_wanted()
                if not self._changed.wait(timeout=patience.remaining_s()):
                    raise DeadlineError(
                        f"another load was still bringing {key.model} to GPU {key.gpu} when the "
                        "time was up"
                    )
            patience.require_wanted()
            if found is not None:
                self._hold(found, holder)
                return found, False
            made = self._arenas[key] = ResidentArena(key, arena)
            self._hold(made, holder)
            return made, True

    def commit(self, resident: ResidentArena, memory: DeviceMemory, ipc_handle: bytes) -> None:
        """Record that an arena was filled, and who wants it may have it."""
        with self._changed:
            assert resident.filling
            assert resident.holders
            resident.memory, resident.ipc_handle = memory, ipc_handle
            resident.filling = False
            self._changed.notify_all()

    def abandon(self, resident: ResidentArena, holder: str) -> None:
        """Give up filling an arena, and the hold on it; the next who enters may try."""
        with self._changed:
            assert resident.filling
            resident.filling = False
            self._forget(resident)
            self._unhold(resident, holder)
            self._changed.notify_all()

    def release(self, resident: ResidentArena, holder: str) -> None:
        """End one hold."""
        with self._changed:
            self._unhold(resident, holder)
            gone = self._settle(resident)
        self._free(gone)

    def hold_source(
        self, model: str, version: str, extents: Collection[int], *, gpu: str, holder: str
    ) -> ResidentArena | None:
        """Hold a filled arena that has these extents, preferably on `gpu`; None if none has."""
        with self._changed:
            covering = [
                arena
                for key, arena in self._arenas.items()
                if (key.model, key.version) == (model, version)
                and not arena.filling
                and key.extents.issuperset(extents)
            ]
            if not covering:
                return None
            best = min(covering, key=lambda arena: (arena.key.gpu != gpu, arena.size_bytes))
            self._hold(best, holder)
            return best

    def gpus_with(self, key: ArenaKey) -> frozenset[str]:
        """Return the GPUs that have a filled arena with these extents; nothing is held."""
        with self._changed:
            return frozenset(
                known.gpu
                for known, arena in self._arenas.items()
                if (known.model, known.version) == (key.model, key.version)
                and not arena.filling
                and known.extents.issuperset(key.extents)
            )

    def evict(self, gpu: str) -> bool:
        """Free the least recently used arena that nobody holds; return whether there was one."""
        with self._changed:
            idle = self._idle(gpu)
            gone = [self._take_memory(arena) for arena in idle[:1]]
        self._free(gone)
        self.wait_freed()
        return bool(idle)

    def wait_freed(self) -> None:
        """Wait until the memory of every arena that went is free."""
        self._frees.submit(int).result()

    def retire(self, model: str) -> None:
        """Forget a model whose files changed; its arenas go when nobody has them any more."""
        gone: list[DeviceMemory] = []
        with self._changed:
            for arena in self._of(model):
                gone += self._retire(arena)
        self._free(gone)

    def unload(self, model: str, patience: Patience) -> None:
        """Free a model's arenas once nobody holds them; raise InUseError saying who still does."""
        with self._changed:
            while holders := {name for arena in self._of(model) for name in arena.holders}:
                patience.require_wanted()
                if not self._changed.wait(timeout=patience.remaining_s()):
                    raise InUseError(
                        f"{model} is in GPU memory for {', '.join(sorted(holders))}: close those "
                        "clients or wait for their loads, then unload again"
                    )
            gone = [self._take_memory(arena) for arena in self._of(model)]
        self._free(gone)
        self.wait_freed()

    def pin(self, residents: Iterable[ResidentArena]) -> None:
        """Keep arenas, which the caller holds, whoever else holds them or not."""
        with self._changed:
            for resident in residents:
                assert resident.holders
                if resident.retired:
                    raise InvalidRequestError(
                        f"the files of {resident.key.model} changed while it was loaded: pin again"
                    )
                resident.pinned = True

    def unpin(self, model: str, gpus: Sequence[str]) -> None:
        """End the pins of a model on these GPUs; its arenas go as those of others do.

        Raises InvalidRequestError if it has no arena there.
        """
        wanted = frozenset(gpus)
        gone: list[DeviceMemory] = []
        with self._changed:
            arenas = [arena for arena in self._of(model) if arena.key.gpu in wanted]
            if not arenas:
                raise InvalidRequestError(f"{model} is not in the memory of GPU {', '.join(gpus)}")
            for arena in arenas:
                arena.pinned = False
                gone += self._settle(arena)
        self._free(gone)

    def models(self) -> list[str]:
        """Return the models that have resident arenas."""
        with self._changed:
            return list(dict.fromkeys(key.model for key in self._arenas))

    def arenas(self, model: str) -> list[ArenaState]:
        """Return a model's arenas, as they are listed."""
        with self._changed:
            return [
                ArenaState(
                    gpu=arena.key.gpu,
                    size_bytes=arena.size_bytes,
                    pinned=arena.pinned,
                    leases=arena.holders.total(),
                )
                for arena in self._of(model)
            ]

    def used_bytes(self, gpu: str) -> int:
        """Bytes of a GPU's arenas: filled, being filled, and those of changed files still held."""
        with self._changed:
            return sum(arena.size_bytes for arena in self._on(gpu))

    def describe(self, gpu: str) -> str:
        """Say what of a GPU is taken, and by whom, for a message."""
        with self._changed:
            held = [
                f"{arena.key.model} ({format_size(arena.size_bytes)}, "
                f"{', '.join(sorted(arena.holders)) or 'pinned'})"
                for arena in self._on(gpu)
                if arena.memory is not None
            ]
        return "; ".join(held) or "nothing"

    def wake(self) -> None:
        """Let everybody who waits look again whether they still want to."""
        with self._changed:
            self._changed.notify_all()

    def _of(self, model: str) -> list[ResidentArena]:
        return [arena for key, arena in self._arenas.items() if key.model == model]

    def _on(self, gpu: str) -> list[ResidentArena]:
        return [a for a in (*self._arenas.values(), *self._retired) if a.key.gpu == gpu]

    def _idle(self, gpu: str) -> list[ResidentArena]:
        """Return what may go from a GPU, the least recently used first."""
        idle = [
            arena
            for key, arena in self._arenas.items()
            if key.gpu == gpu and not arena.holders and not arena.pinned
        ]
        return sorted(idle, key=lambda arena: arena.used_at)

    def _hold(self, resident: ResidentArena, holder: str) -> None:
        resident.holders[holder] += 1
        self._uses += 1
        resident.used_at = self._uses

    def _unhold(self, resident: ResidentArena, holder: str) -> None:
        assert resident.holders[holder] > 0
        resident.holders[holder] -= 1
        resident.holders += Counter()

    def _settle(self, resident: ResidentArena) -> list[DeviceMemory]:
        """Return the memory that goes because an arena is held or pinned no more."""
        self._changed.notify_all()
        if resident.holders or resident.pinned:
            return []
        if resident.retired:
            return [self._take_memory(resident)]
        idle = self._idle(resident.key.gpu)
        kept = sum(arena.size_bytes for arena in idle)
        gone = []
        while kept > self.kept_bytes:
            arena = idle.pop(0)
            kept -= arena.size_bytes
            gone.append(self._take_memory(arena))
        return gone

    def _retire(self, resident: ResidentArena) -> list[DeviceMemory]:
        del self._arenas[resident.key]
        resident.retired, resident.pinned = True, False
        self._retired.append(resident)
        return self._settle(resident)

    def _forget(self, resident: ResidentArena) -> None:
        if resident.retired:
            self._retired.remove(resident)
        else:
            del self._arenas[resident.key]

    def _take_memory(self, resident: ResidentArena) -> DeviceMemory:
        """Remove an arena that nobody holds from the books."""
        assert not resident.holders
        memory, resident.memory = resident.memory, None
        assert memory is not None
        self._forget(resident)
        return memory

    def _free(self, gone: list[DeviceMemory]) -> None:
        if gone:
            self._frees.submit(gone.clear)


def plan_copies(
    source: Arena, target: Arena, extent_bytes: Callable[[int], int]
) -> list[tuple[int, int, int]]:
    """Return (source offset, target offset, size) for every extent of an arena, neighbours joined.

    `source` has all of the target's extents. Bytes between neighbours, which nobody reads, come
    along.
    """
    if (source.size_bytes, source.offsets) == (target.size_bytes, target.offsets):
        return [(0, 0, target.size_bytes)] if target.size_bytes else []
    copies: list[tuple[int, int, int]] = []
    for extent, place in sorted(target.offsets.items(), key=lambda item: item[1]):
        size, start = extent_bytes(extent), source.offsets[extent]
        if size == 0:
            continue
        if copies:
            first, into, length = copies[-1]
            gap = place - into - length
            if start - first == place - into and gap <= _GAP_MAX:
                copies[-1] = (first, into, max(length, place + size - into))
                continue
        copies.append((start, place, size))
    return copies
