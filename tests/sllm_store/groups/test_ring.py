"""A ring hands out what is on disk, in its order or out of it, and gives buffers back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.errors import DeadlineError, ReadError
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.reads import Slot, ThreadedReads
from sllm_store.groups.ring import Ring, open_ring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.groups.stored import StoredModel
    from sllm_store.native import Control, HostBuffer


class _Watched(GroupReader):
    """A reader that can be held up, that can fail, and that remembers what was read."""

    def __init__(self, model: StoredModel) -> None:
        super().__init__(model, [[tensor] for tensor in model.tensors])
        self.read_groups: list[int] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.failing: set[int] = set()

    def read(self, group: int, buffer: HostBuffer, control: Control | None = None) -> None:
        assert self.may_read.wait(60)
        self.read_groups.append(group)
        if group in self.failing:
            self.failing.remove(group)
            raise ReadError("the disk is gone")
        super().read(group, buffer, control)


@pytest.fixture
def reader(model: StoredModel) -> _Watched:
    return _Watched(model)


def _open_watched(
    reader: _Watched, order: Sequence[int], *, slots: int, readers: int = 1
) -> Ring[HostBuffer]:
    buffers = [reader.allocate(max(map(reader.size_bytes, order))) for _ in range(slots)]
    return Ring(ThreadedReads(reader.read, readers=readers), order, buffers)


def _require(
    reader: GroupReader,
    ring: Ring[HostBuffer] | Ring[Slot],
    group: int,
    tensors: dict[str, torch.Tensor],
) -> None:
    (tensor,), (place,) = reader.layouts[group].tensors, reader.layouts[group].places
    with ring.lease(group) as leased:
        slot = leased if isinstance(leased, Slot) else Slot(leased, 0)
        start = slot.offset + place
        raw = from_dlpack(slot.buffer)[start : start + tensor.size_bytes]
        assert torch.equal(raw.view(torch.float32).view(tensor.shape), tensors[tensor.name])


@pytest.mark.parametrize("slots", [1, 2, 9])
def test_turns_repeat(reader: _Watched, tensors: dict[str, torch.Tensor], slots: int) -> None:
    order = [4, 0, 2]
    with _open_watched(reader, order, slots=slots) as ring:
        for group in order * 3:
            _require(reader, ring, group, tensors)
        assert ring.counts.leased == 9
        assert ring.counts.restarts == 0
    assert all(reader.read_groups.count(group) >= 3 for group in order)
    assert len(reader.read_groups) <= 9 + slots


@pytest.mark.parametrize("slots", [1, 2, 9])
def test_groups_come_from_disk(
    model: StoredModel, tensors: dict[str, torch.Tensor], slots: int
) -> None:
    reader = GroupReader(model, [[tensor] for tensor in model.tensors])
    with open_ring(reader, range(6), slots=slots) as ring:
        for group in (0, 1, 2, 3, 4, 5, 0, 1, 4, 5, 0, 3, 3, 2):
            _require(reader, ring, group, tensors)
        assert ring.counts.restarts == 4


def test_another_group_begins_the_turn_anew(
    reader: _Watched, tensors: dict[str, torch.Tensor]
) -> None:
    with _open_watched(reader, range(6), slots=2) as ring:
        for group in (0, 1, 4, 5, 0, 3, 3, 2):
            _require(reader, ring, group, tensors)
        assert ring.counts.restarts == 4


def test_reading_goes_on_while_a_group_is_in_use(reader: _Watched) -> None:
    reached = threading.Event()
    plain = reader.read

    def read(group: int, buffer: HostBuffer, control: Control | None = None) -> None:
        plain(group, buffer, control)
        if group == 2:
            reached.set()

    reader.read = read  # type: ignore[method-assign]
    with _open_watched(reader, range(6), slots=3) as ring, ring.lease(0):
        assert reached.wait(60), "the groups after the one in use are read"


def test_two_groups_are_read_at_once(reader: _Watched) -> None:
    both = threading.Barrier(2)
    plain = reader.read

    def read(group: int, buffer: HostBuffer, control: Control | None = None) -> None:
        if group < 2:
            both.wait(60)
        plain(group, buffer, control)

    reader.read = read  # type: ignore[method-assign]
    with _open_watched(reader, range(6), slots=2, readers=2) as ring, ring.lease(0):
        assert not both.broken


def test_a_read_that_fails_is_raised_once_and_tried_again(
    reader: _Watched, tensors: dict[str, torch.Tensor]
) -> None:
    reader.failing = {0}
    with _open_watched(reader, range(6), slots=2) as ring:
        with pytest.raises(ReadError, match="the disk is gone"), ring.lease(0):
            pass
        for group in (0, 1, 2):
            _require(reader, ring, group, tensors)


def test_a_slow_read_is_waited_for_until_the_deadline_and_then_again(
    reader: _Watched, tensors: dict[str, torch.Tensor]
) -> None:
    reader.may_read.clear()
    with _open_watched(reader, range(6), slots=2) as ring:
        with pytest.raises(DeadlineError), ring.lease(0, timeout_s=0.01):
            pass
        reader.may_read.set()
        for group in range(6):
            _require(reader, ring, group, tensors)
        assert ring.counts.restarts == 0


class _Interrupted:
    """Reads, and one of them, of which every wait is interrupted, as by Ctrl-C."""

    def __init__(self) -> None:
        self.is_reading = False

    def begin(self, _group: int, _buffer: object) -> _Interrupted:
        assert not self.is_reading, "nobody else reads into the buffer"
        self.is_reading = True
        return self

    def wait(self, _timeout_s: float) -> bool:
        raise KeyboardInterrupt

    def abandon(self) -> None:
        self.is_reading = False

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_wait_that_is_interrupted_frees_no_buffer_that_is_still_read_into() -> None:
    with Ring(_Interrupted(), [0, 1], [object()]) as ring:
        for group in (0, 1, 0):
            with pytest.raises(KeyboardInterrupt), ring.lease(group):
                pass


def test_closing_twice_is_closing_once(reader: _Watched) -> None:
    ring = _open_watched(reader, range(6), slots=2)
    ring.close()
    ring.close()
