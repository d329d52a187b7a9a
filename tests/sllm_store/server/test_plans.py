"""Plans are made once for all who ask the same, and forgotten in the order they were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store.checkpoint.columns import from_columns
from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.model import Checkpoint, DataFile, Extent, Tensor
from sllm_store.checkpoint.plan import plan_load
from sllm_store.proto import storage_pb2 as pb
from sllm_store.server import plans as plans_module
from sllm_store.server.catalog import Entry
from sllm_store.server.plans import Plans, WholePlan
from sllm_store.tiers.transfer import ImageMap, cut_image

if TYPE_CHECKING:
    import pytest

CHUNK_BYTES = 1 << 20


def entry_of(name: str, count: int) -> Entry:
    """Return a model with `count` tensors of 100 bytes."""
    tensors = {f"l.{n}": Tensor(f"l.{n}", "uint8", (100,), (1,), n) for n in range(count)}
    checkpoint = Checkpoint(
        path=Path(name),
        format="sllm",
        files=(DataFile(path=Path("f"), size_bytes=1 << 20, mtime_ns=0, inode=0),),
        extents=tuple(Extent(0, n * 256, 100) for n in range(count)),
        tensors=tensors,
    )
    image = plan_image(checkpoint, CHUNK_BYTES)
    return Entry(
        name=name,
        checkpoint=checkpoint,
        chunked=cut_image(image, CHUNK_BYTES),
        image_map=ImageMap.of(checkpoint, image),
        whole=WholePlan.of(checkpoint, image),
    )


def test_the_same_question_has_the_same_answer_until_the_model_is_opened_again() -> None:
    plans, entry = Plans(), entry_of("m", 3)
    first = plans.plan(entry, {"": "gpu", "l.1": "cpu"})
    assert plans.plan(entry, {"l.1": "cpu", "": "gpu"}) is first
    assert first.answer is first.answer
    assert from_columns(first.answer.tensors) == first.plan.tensors
    assert plans.plan(entry, {"": "gpu"}) is not first
    again = plans.plan(entry_of("m", 3), {"": "gpu", "l.1": "cpu"})
    assert again is not first
    assert plans.find(first.plan_id) is None
    assert plans.find(again.plan_id) is again


def test_all_of_a_model_on_one_gpu_is_planned_before_and_is_the_plain_plan() -> None:
    for entry in (entry_of("m", 3), entry_of("none", 0)):
        plain = plan_load(entry.checkpoint, entry.chunked.image, {"": "gpu"})
        found = Plans().plan(entry, {"": "gpu"}).plan
        assert found == plain
        assert found.arenas is entry.whole.plan.arenas
        assert Plans().plan(entry, {"": "cpu"}).plan.devices == ("cpu",) * len(plain.devices)


def test_an_answer_is_sent_as_it_was_put_in_order_once() -> None:
    for device_map in ({"": "gpu"}, {"": "gpu", "l.1": "cpu"}, {}):
        planned = Plans().plan(entry_of("m", 3), device_map)
        assert planned.reply is planned.reply
        assert pb.LocalReply.FromString(planned.reply).plan == planned.answer
        assert pb.LocalReply.FromString(planned.event).event.plan == planned.answer


def test_a_plan_tells_what_goes_to_gpus() -> None:
    planned = Plans().plan(entry_of("m", 4), {"": "gpu", "l.1": "cpu"})
    ((device, arena),) = planned.on_gpus
    assert device == "gpu"
    assert sorted(arena.offsets) == [0, 2, 3]
    assert planned.bytes_total == arena.moved_bytes
    ((key, _),) = planned.shared
    assert (key.model, key.gpu, key.extents) == ("m", "gpu", frozenset({0, 2, 3}))
    on_host = Plans().plan(entry_of("m", 4), {})
    assert (on_host.on_gpus, on_host.shared) == ([], [])
    assert on_host.bytes_total == on_host.plan.image.size_bytes


def test_plans_go_when_they_are_many_or_have_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans_module, "PLANS_MAX", 3)
    monkeypatch.setattr(plans_module, "PLANNED_TENSORS_MAX", 25)
    plans = Plans()
    entries = [entry_of(str(number), 5) for number in range(5)]
    made = [plans.plan(entry, {}) for entry in entries[:3]]
    assert plans.plan(entries[0], {}) is made[0]
    plans.plan(entries[3], {})
    assert [plans.find(plan.plan_id) is plan for plan in made] == [True, False, True]
    large = plans.plan(entry_of("large", 100), {})
    assert plans.find(large.plan_id) is large
    assert [plans.find(plan.plan_id) for plan in made] == [None] * 3
