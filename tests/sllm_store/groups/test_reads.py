"""Whatever reads groups puts them where they belong, says what went wrong, and ends when told."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.errors import InvalidCheckpointError, ReadError
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.reads import QueuedReads, Reads, Slot, ThreadedReads, open_reads
from sllm_store.native import Control, NativeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm_store.groups.stored import StoredModel


def _reader(model: StoredModel) -> GroupReader:
    return GroupReader(model, [[tensor] for tensor in model.tensors])


def _open(reader: GroupReader, kind: str) -> Reads[Slot]:
    def read(group: int, slot: Slot, control: Control) -> None:
        reader.read_many([(group, slot.offset)], slot.buffer, control)

    if kind == "threads":
        return ThreadedReads(read, readers=2)
    try:
        return QueuedReads(reader)
    except NativeError:
        pytest.skip("this kernel has no io_uring")


@pytest.fixture(params=["threads", "queue"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reads(model: StoredModel, kind: str) -> Iterator[Reads[Slot]]:
    found = _open(_reader(model), kind)
    yield found
    found.close()


def _slots(reader: GroupReader, count: int) -> list[Slot]:
    size_bytes = max(map(reader.size_bytes, range(len(reader.layouts))))
    buffer = reader.allocate(count * size_bytes)
    return [Slot(buffer, place * size_bytes) for place in range(count)]


def _tensor(reader: GroupReader, group: int, slot: Slot) -> torch.Tensor:
    (tensor,), (place,) = reader.layouts[group].tensors, reader.layouts[group].places
    start = slot.offset + place
    raw = from_dlpack(slot.buffer)[start : start + tensor.size_bytes]
    return raw.view(torch.float32).view(tensor.shape)


def test_groups_arrive_in_their_slots(
    model: StoredModel, tensors: dict[str, torch.Tensor], reads: Reads[Slot]
) -> None:
    reader = _reader(model)
    for evict in (True, False):
        if evict:
            model.files[0].evict()
        else:
            Path(model.files[0].path).read_bytes()
        slots = _slots(reader, len(reader.layouts))
        readings = [reads.begin(group, slot) for group, slot in enumerate(slots)]
        for group in (5, 0, 1, 4, 3, 2):
            assert readings[group].wait(60)
            name = reader.layouts[group].tensors[0].name
            assert torch.equal(_tensor(reader, group, slots[group]), tensors[name])


def test_a_file_that_has_become_too_short_is_an_error(
    model: StoredModel, reads: Reads[Slot]
) -> None:
    reader = _reader(model)
    os.truncate(model.files[0].path, 4096)
    reading = reads.begin(5, *_slots(reader, 1))
    with pytest.raises(ReadError, match="expected"):
        reading.wait(60)


def test_a_file_that_has_changed_is_an_error(
    model: StoredModel, reads: Reads[Slot], tmp_path: Path
) -> None:
    reader = _reader(model)
    path = Path(model.files[0].path)
    path.write_bytes(path.read_bytes())
    with pytest.raises(InvalidCheckpointError, match="changed"):
        reads.begin(0, *_slots(reader, 1)).wait(60)


def test_what_is_abandoned_is_over(model: StoredModel, reads: Reads[Slot]) -> None:
    reader = _reader(model)
    (slot,) = _slots(reader, 1)
    for group in (0, 5, 3):
        reading = reads.begin(group, slot)
        reads.cancel()
        reading.abandon()


def test_closing_ends_what_has_begun_and_may_be_repeated(model: StoredModel, kind: str) -> None:
    reader = _reader(model)
    reads = _open(reader, kind)
    for group, slot in enumerate(_slots(reader, 6)):
        reads.begin(group, slot)
    reads.close()
    reads.close()


def test_a_queue_is_used_where_reads_land_in_place(model: StoredModel) -> None:
    groups = [[tensor] for tensor in model.tensors]
    buffered = open_reads(GroupReader(model, groups, mode="buffered"), range(6))
    assert isinstance(buffered, ThreadedReads)
    _open(_reader(model), "queue").close()
    queued = open_reads(_reader(model), range(6))
    assert isinstance(queued, QueuedReads)
    displaced = [replace(model.tensors[0], offset=model.tensors[0].offset + 1)]
    scattered = open_reads(GroupReader(model, [displaced]), [0])
    assert isinstance(scattered, ThreadedReads)
    for reads in (buffered, queued, scattered):
        reads.close()
