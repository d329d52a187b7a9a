"""Plans of loads, kept for the next client that asks for the same: it costs nothing per tensor."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sllm_store.checkpoint.columns import to_columns
from sllm_store.checkpoint.plan import CPU, plan_load
from sllm_store.proto import storage_pb2 as pb
from sllm_store.tiers.resident import ArenaKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm_store.checkpoint.layout import Arena, Image
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.checkpoint.plan import LoadPlan
    from sllm_store.server.catalog import Entry

_ANY_GPU = "any GPU"
PLANS_MAX = 1024
# Of all plans together; a tensor takes about 400 bytes.
PLANNED_TENSORS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WholePlan:
    """The plan of all of a model on one GPU, whichever, and a reply with its tensors alone.

    Most loads are that, and it is made before the first of them.
    """

    plan: LoadPlan
    tensors_reply: bytes

    @classmethod
    def of(cls, checkpoint: Checkpoint, image: Image) -> WholePlan:
        """Plan it."""
        plan = plan_load(checkpoint, image, {"": _ANY_GPU})
        return cls(plan=plan, tensors_reply=tell_tensors(plan))

    def on(self, gpu: str) -> LoadPlan:
        """Return the plan for one GPU."""
        return replace(self.plan, devices=tuple(gpu for _ in self.plan.devices))


@dataclass(frozen=True, kw_only=True)
class PlannedLoad:
    """A load that clients may ask for by the plan's id, and what it takes, worked out once."""

    plan_id: str
    entry: Entry
    plan: LoadPlan

    @cached_property
    def bytes_total(self) -> int:
        """Bytes to bring to devices, or to the host where there are none; decoded ones."""
        moved = sum(arena.moved_bytes for _, arena in self.on_gpus)
        if moved or not self.plan.checkpoint.is_compressed:
            return moved or self.plan.image.size_bytes
        return sum(arena.moved_bytes for arena in self.plan.arenas)

    def bytes_done(self, moved_bytes: int) -> int:
        """How far a load is that moved so many bytes, on the scale of bytes_total."""
        if self.on_gpus or not self.plan.checkpoint.is_compressed:
            return moved_bytes
        return moved_bytes * self.bytes_total // max(self.plan.image.size_bytes, 1)

    @property
    def decodes_on_host(self) -> bool:
        """Whether the client has to decode what it gets in host memory."""
        return self.plan.checkpoint.is_compressed and CPU in self.plan.devices

    @cached_property
    def on_gpus(self) -> list[tuple[str, Arena]]:
        """The arenas on GPUs that are not empty, in the plan's order, with the GPU's UUID."""
        arenas = zip(self.plan.devices, self.plan.arenas, strict=True)
        return [(device, arena) for device, arena in arenas if device != CPU and arena.size_bytes]

    @cached_property
    def shared(self) -> list[tuple[ArenaKey, Arena]]:
        """The same arenas, with the keys under which they are shared."""
        checkpoint = self.entry.checkpoint
        return [
            (
                ArenaKey(
                    model=self.entry.name,
                    version=checkpoint.version,
                    gpu=device,
                    extents=frozenset(arena.offsets),
                ),
                arena,
            )
            for device, arena in self.on_gpus
        ]

    @cached_property
    def answer(self) -> Any:
        """What a client is told of the plan; not to be changed."""
        answer = self._answer_without_tensors()
        answer.tensors.CopyFrom(to_columns(self.plan.tensors))
        return answer

    def _answer_without_tensors(self) -> Any:
        checkpoint, plan = self.entry.checkpoint, self.plan
        return pb.PlanLoadResponse(
            plan=self.plan_id,
            arenas=[
                pb.Arena(
                    device=device,
                    size_bytes=arena.size_bytes,
                    decoding=_decoding(plan, arena) if device == CPU else None,
                )
                for device, arena in zip(plan.devices, plan.arenas, strict=True)
            ],
            aliases=checkpoint.aliases,
            format=checkpoint.format,
            path=str(checkpoint.directory),
        )

    @cached_property
    def reply(self) -> bytes:
        """The answer as the local socket sends it: one with tensors, merged with the rest."""
        whole = self.entry.whole
        told = whole.tensors_reply if self.plan.tensors is whole.plan.tensors else None
        return _reply(self._answer_without_tensors()) + (told or tell_tensors(self.plan))

    @cached_property
    def event(self) -> bytes:
        """The same as the first event of a load that was not planned before."""
        data: bytes = pb.LocalReply(event=pb.LoadEvent(plan=self.answer)).SerializeToString()
        return data


def _plan(entry: Entry, device_map: Mapping[str, str]) -> LoadPlan:
    gpu = device_map.get("", CPU)
    if len(device_map) != 1 or gpu == CPU:
        return plan_load(entry.checkpoint, entry.chunked.image, device_map)
    return entry.whole.on(gpu)


def tell_tensors(plan: LoadPlan) -> bytes:
    """Return a reply with the tensors of a plan alone."""
    return _reply(pb.PlanLoadResponse(tensors=to_columns(plan.tensors)))


def _reply(answer: Any) -> bytes:
    data: bytes = pb.LocalReply(plan=answer).SerializeToString()
    return data


def _decoding(plan: LoadPlan, arena: Arena) -> Any:
    """Say how a client makes a host arena out of what is stored; None where that is the arena."""
    if not plan.checkpoint.is_compressed:
        return None
    return pb.Decoding(
        image_bytes=plan.image.size_bytes,
        raw_bytes=arena.moved_bytes,
        pieces=[number for piece in arena.pieces for number in piece],
        decodes=[number for decode in arena.decodes for number in decode],
    )


class Plans:
    """The plans that were asked for last. Thread-safe; planning is done in the caller's thread."""

    def __init__(self) -> None:
        """Know no plan."""
        self._by_question: OrderedDict[object, PlannedLoad] = OrderedDict()
        self._by_id: dict[str, PlannedLoad] = {}
        self._tensors = 0
        self._lock = threading.Lock()

    def plan(self, entry: Entry, device_map: Mapping[str, str]) -> PlannedLoad:
        """Return the plan of this load, made now if it has none."""
        question = (entry.name, frozenset(device_map.items()))
        with self._lock:
            known = self._by_question.get(question)
            if known is not None and known.entry is entry:
                self._by_question.move_to_end(question)
                return known
        planned = PlannedLoad(
            plan_id=uuid.uuid4().hex,
            entry=entry,
            plan=_plan(entry, device_map),
        )
        with self._lock:
            self._drop(self._by_question.pop(question, None))
            self._by_question[question] = planned
            self._by_id[planned.plan_id] = planned
            self._tensors += len(planned.plan.tensors)
            while len(self._by_question) > 1 and (
                len(self._by_question) > PLANS_MAX or self._tensors > PLANNED_TENSORS_MAX
            ):
                self._drop(self._by_question.popitem(last=False)[1])
        return planned

    def find(self, plan_id: str) -> PlannedLoad | None:
        """Return the plan with this id, unless it is forgotten."""
        with self._lock:
            return self._by_id.get(plan_id)

    def _drop(self, planned: PlannedLoad | None) -> None:
        if planned is not None:
            del self._by_id[planned.plan_id]
            self._tensors -= len(planned.plan.tensors)
