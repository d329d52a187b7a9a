"""Groups arrive together in one buffer while the caller does something else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.errors import DeadlineError, InvalidCheckpointError
from sllm_store.groups.background import BackgroundReads
from sllm_store.groups.reader import GroupReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm_store.groups.stored import StoredModel
    from sllm_store.native import Control, HostBuffer

SLOT_BYTES = 256 * 1024


class _Held(GroupReader):
    """A reader that can be held up."""

    may_read = threading.Event()

    def read_many(
        self,
        places: Sequence[tuple[int, int]],
        buffer: HostBuffer,
        control: Control | None = None,
    ) -> None:
        assert self.may_read.wait(60)
        super().read_many(places, buffer, control)


@pytest.fixture
def reads(model: StoredModel) -> Iterator[BackgroundReads]:
    _Held.may_read.set()
    reads = BackgroundReads(_Held(model, [[tensor] for tensor in model.tensors]), 4 * SLOT_BYTES)
    yield reads
    _Held.may_read.set()
    reads.close()
    reads.close()


def test_every_group_is_where_it_was_asked_to_be(
    model: StoredModel, tensors: dict[str, torch.Tensor], reads: BackgroundReads
) -> None:
    slots = {3: 0, 1: 2 * SLOT_BYTES, 5: SLOT_BYTES}
    read = reads.begin(list(slots.items()))
    read.wait()
    assert read.abandon()
    raw = from_dlpack(reads.buffer)
    for group, slot in slots.items():
        tensor = model.tensors[group]
        start = slot + tensor.offset % 4096
        found = raw[start : start + tensor.size_bytes].view(torch.float32).view(tensor.shape)
        assert torch.equal(found, tensors[tensor.name])


def test_a_read_that_is_abandoned_writes_no_more(reads: BackgroundReads) -> None:
    _Held.may_read.clear()
    first, second = reads.begin([(0, 0)]), reads.begin([(1, SLOT_BYTES)])
    with pytest.raises(DeadlineError):
        first.wait(0.01)
    assert not second.abandon()
    _Held.may_read.set()
    first.wait()


def test_what_reading_raises_is_raised_to_who_waits(
    model: StoredModel, reads: BackgroundReads
) -> None:
    path = model.checkpoint.files[0].path
    path.write_bytes(path.read_bytes())
    read = reads.begin([(0, 0)])
    with pytest.raises(InvalidCheckpointError, match="changed since it was opened"):
        read.wait()
    assert not read.abandon()
