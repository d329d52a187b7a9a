"""The host tier: which chunks of which checkpoint are in the pool, and who may reuse one.

The pool is cut into equal chunks. A model's residency lists which chunk of the pool holds which
chunk of its image, so a model can be partly resident. A holder (a running load, a client's lease,
a pin) keeps all resident chunks of its model; of everything else the least recently used model
gives up its last chunks first, because loads go through an image from the front.

One lock guards all of it and no holder of the lock ever blocks on I/O.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_store.errors import (
    DeadlineError,
    InUseError,
    InvalidRequestError,
    LoadCancelledError,
    PoolExhaustedError,
    PoolTooSmallError,
)
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sllm_store.native import Control

RING_CHUNKS_MIN = 2
RING_CHUNKS_MAX = 8


@dataclass(slots=True, eq=False)
class Residency:
    """A model's chunks in the pool; `chunks[i]` is None where image chunk i is not resident.

    A user (between enter and leave) keeps these books alive, a holder keeps the chunks resident.
    """

    model: str
    version: str
    chunks: list[int | None]
    pinned: bool = False
    used_at: int = 0
    retired: bool = False
    users: int = 0
    holders: Counter[str] = field(default_factory=Counter)
    filling: bool = False

    @property
    def resident(self) -> int:
        """Chunks in the pool."""
        return sum(chunk is not None for chunk in self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a load got: chunks that are ready, chunks to fill, and a ring for the rest.

    ready and kept map image chunks to pool chunks. `streamed` image chunks pass through `ring`,
    a few pool chunks used again and again.
    """

    residency: Residency
    holder: str
    ready: dict[int, int]
    kept: dict[int, int]
    streamed: tuple[int, ...]
    ring: tuple[int, ...]

    @property
    def is_ready(self) -> bool:
        """Whether nothing has to be read."""
        return not self.kept and not self.streamed


class Patience:
    """How long somebody waits, and whether they still want what they wait for."""

    def __init__(self, deadline_s: float, control: Control, clock: Callable[[], float]) -> None:
        """Wait until the clock says deadline_s, or until control is cancelled."""
        self._deadline_s = deadline_s
        self._control = control
        self._clock = clock

    def remaining_s(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self._deadline_s - self._clock())

    def require_wanted(self) -> None:
        """Raise LoadCancelledError when nobody waits any more."""
        if self._control.cancelled:
            raise LoadCancelledError("cancelled while waiting for memory or for another load")


class HostTier:
    """The pool's books. Chunks are numbered; their memory is somebody else's."""

    def __init__(self, chunks_total: int, chunk_bytes: int) -> None:
        """All chunks start free; the lowest numbers are used first."""
        self.chunks_total = chunks_total
        self.chunk_bytes = chunk_bytes
        self._free = list(reversed(range(chunks_total)))
        self._models: dict[str, Residency] = {}
        self._retired: list[Residency] = []
        self._uses = 0
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """Bytes of chunks that hold or are being filled with something."""
        with self._changed:
            return (self.chunks_total - len(self._free)) * self.chunk_bytes

    def enter(self, model: str, version: str, chunks_total: int) -> Residency:
        """Return the books of this version of a model, new ones if it has none; leave them later.

        Another version's books are retired: bytes of two versions never mix.
        """
        with self._changed:
            found = self._models.get(model)
            if found is not None and found.version != version:
                self._retire(found)
                found = None
            if found is None:
                found = self._models[model] = Residency(model, version, [None] * chunks_total)
            assert len(found.chunks) == chunks_total
            found.users += 1
            return found

    def leave(self, residency: Residency) -> None:
        """End what enter began."""
        with self._changed:
            assert residency.users > 0
            residency.users -= 1
            self._settle(residency)

    def find(self, model: str) -> Residency | None:
        """Return the model's residency if it has one."""
        with self._changed:
            return self._models.get(model)

    def begin_fill(self, residency: Residency, patience: Patience) -> None:
        """Become the one load that may fill this model; raise DeadlineError if others take long."""
        with self._changed:
            while residency.filling:
                patience.require_wanted()
                if not self._changed.wait(timeout=patience.remaining_s()):
                    raise DeadlineError(
                        f"another load of {residency.model} was still reading when the time was up"
                    )
            residency.filling = True

    def end_fill(self, residency: Residency) -> None:
        """Let the next load of this model fill it."""
        with self._changed:
            assert residency.filling
            residency.filling = False
            self._changed.notify_all()

    def claim(
        self,
        residency: Residency,
        wanted: Sequence[int],
        *,
        whole: bool,
        holder: str,
        patience: Patience,
    ) -> Claim:
        """Hold the model and get pool chunks for the image chunks that it misses.

        With `whole` every wanted chunk gets one of its own; otherwise what does not fit streams
        through a ring. Waits for others to let go of chunks. The caller is between
        begin_fill and end_fill, and ends with commit or abandon, then release.
        Raises PoolTooSmallError when the pool cannot hold the model, PoolExhaustedError when it
        does not in time.
        """
        with self._changed:
            if whole and len(wanted) > self.chunks_total:
                raise PoolTooSmallError(
                    f"{residency.model} needs {self._size(len(wanted))} of the host pool, which "
                    f"has {self._size(self.chunks_total)}: start the store with a larger "
                    "--mem-pool-size, or load without the store"
                )
            while True:
                patience.require_wanted()
                missing = [chunk for chunk in wanted if residency.chunks[chunk] is None]
                need = len(missing) if whole else min(len(missing), RING_CHUNKS_MIN)
                if self._supply(residency) >= need:
                    break
                if not whole and not residency.holders and residency.resident:
                    self._demote(residency, need)
                    continue
                if not self._changed.wait(timeout=patience.remaining_s()):
                    raise PoolExhaustedError(self._who_fills_it(residency, need))
            return self._take(residency, wanted, missing, holder)

    def commit(self, claim: Claim) -> None:
        """Record that every chunk of the claim was filled."""
        with self._changed:
            residency = claim.residency
            for image_chunk, pool_chunk in claim.kept.items():
                residency.chunks[image_chunk] = pool_chunk
            for slot, pool_chunk in enumerate(claim.ring):
                last = [*claim.streamed[slot :: len(claim.ring)]][-1:]
                if last:
                    residency.chunks[last[0]] = pool_chunk
                else:
                    self._free.append(pool_chunk)
            self._changed.notify_all()

    def abandon(self, claim: Claim) -> None:
        """Give the claim's chunks back: what is in them is not known."""
        with self._changed:
            self._free.extend((*claim.kept.values(), *claim.ring))
            self._changed.notify_all()

    def release(self, residency: Residency, holder: str) -> None:
        """End one hold."""
        with self._changed:
            assert residency.holders[holder] > 0
            residency.holders[holder] -= 1
            residency.holders += Counter()
            self._settle(residency)

    def retire(self, model: str) -> None:
        """Forget a model whose files changed; its chunks go when nobody has them any more."""
        with self._changed:
            residency = self._models.get(model)
            if residency is not None:
                self._retire(residency)

    def unload(self, model: str, patience: Patience) -> None:
        """Free a model's chunks once nobody holds it; raise InUseError saying who still does."""
        with self._changed:
            while True:
                residency = self._models.get(model)
                if residency is None:
                    return
                if not residency.holders:
                    break
                patience.require_wanted()
                if not self._changed.wait(timeout=patience.remaining_s()):
                    raise InUseError(
                        f"{model} is in use by {', '.join(sorted(residency.holders))}: close "
                        "those clients or wait for their loads, then unload again"
                    )
            self._free_chunks(residency)
            self._settle(residency)

    def set_pinned(self, model: str, *, pinned: bool) -> None:
        """Keep a resident model in the pool whatever else is loaded, or stop doing so."""
        with self._changed:
            residency = self._models.get(model)
            if residency is None:
                raise InvalidRequestError(f"{model} is not in the host pool")
            residency.pinned = pinned
            self._changed.notify_all()

    def models(self) -> list[str]:
        """Return the models that have a residency."""
        with self._changed:
            return list(self._models)

    def wake(self) -> None:
        """Let everybody who waits look again whether they still want to."""
        with self._changed:
            self._changed.notify_all()

    def _take(
        self, residency: Residency, wanted: Sequence[int], missing: list[int], holder: str
    ) -> Claim:
        """Hold the model and allocate; the caller has checked that there is enough."""
        residency.holders[holder] += 1
        self._uses += 1
        residency.used_at = self._uses
        count = min(len(missing), self._supply(residency))
        self._make_room(residency, count)
        # In order: chunks that continue one another are copied as one.
        chunks = sorted(self._free.pop() for _ in range(count))
        ring_size = min(RING_CHUNKS_MAX, count) if count < len(missing) else 0
        kept = dict(zip(missing, chunks[: count - ring_size], strict=False))
        ready = {c: p for c in wanted if (p := residency.chunks[c]) is not None}
        return Claim(
            residency=residency,
            holder=holder,
            ready=ready,
            kept=kept,
            streamed=tuple(missing[len(kept) :]) if ring_size else (),
            ring=tuple(chunks[count - ring_size :]),
        )

    def _evictable(self, asking: Residency) -> Iterable[Residency]:
        return (
            model
            for model in self._models.values()
            if model is not asking and not model.holders and not model.pinned and model.resident
        )

    def _supply(self, asking: Residency) -> int:
        return len(self._free) + sum(model.resident for model in self._evictable(asking))

    def _make_room(self, asking: Residency, count: int) -> None:
        """Evict until `count` chunks are free, the least recently used model first."""
        for model in sorted(self._evictable(asking), key=lambda model: model.used_at):
            if len(self._free) >= count:
                return
            self._demote(model, count - len(self._free))
        assert len(self._free) >= count

    def _demote(self, residency: Residency, count: int) -> None:
        """Free up to `count` resident chunks, the last of the image first, of an unheld model."""
        assert not residency.holders
        for index in reversed(range(len(residency.chunks))):
            chunk = residency.chunks[index]
            if chunk is not None:
                residency.chunks[index] = None
                self._free.append(chunk)
                count -= 1
            if count == 0:
                return

    def _retire(self, residency: Residency) -> None:
        del self._models[residency.model]
        residency.retired = True
        self._retired.append(residency)
        self._settle(residency)

    def _settle(self, residency: Residency) -> None:
        """Drop books that nobody needs, and let those who wait look again."""
        if not residency.holders and not residency.users:
            if residency.retired:
                self._free_chunks(residency)
                self._retired.remove(residency)
            elif not residency.resident:
                self._models.pop(residency.model, None)
        self._changed.notify_all()

    def _free_chunks(self, residency: Residency) -> None:
        self._free.extend(chunk for chunk in residency.chunks if chunk is not None)
        residency.chunks = [None] * len(residency.chunks)
        assert len(self._free) <= self.chunks_total

    def _size(self, chunks: int) -> str:
        return format_size(chunks * self.chunk_bytes)

    def _who_fills_it(self, asking: Residency, need: int) -> str:
        held = [
            f"{model.model} ({self._size(model.resident)}, "
            f"{', '.join(sorted(model.holders)) or 'pinned'})"
            for model in (*self._models.values(), *self._retired)
            if model.resident and (model.holders or model.pinned)
        ]
        return (
            f"{asking.model} needs {self._size(need)} of the host pool and waited in vain; held: "
            f"{'; '.join(held) or 'by loads that are running'}. Unpin or close some, or start the "
            "store with a larger --mem-pool-size"
        )
