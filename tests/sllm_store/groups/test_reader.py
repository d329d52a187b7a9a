"""A group that was read has every byte, and a failed read says which file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.errors import InvalidCheckpointError, LoadCancelledError
from sllm_store.groups.layout import PAGE
from sllm_store.groups.reader import GroupReader
from sllm_store.native import Control, HostBuffer

if TYPE_CHECKING:
    from sllm_store.groups.stored import StoredModel


@pytest.mark.parametrize("mode", ["auto", "buffered"])
def test_every_byte_is_where_the_layout_says(
    model: StoredModel, tensors: dict[str, torch.Tensor], mode: str
) -> None:
    reader = GroupReader(model, [model.tensors[1:4], model.tensors[:1], []], mode=mode)
    for group in range(2):
        raw = from_dlpack(reader.load(group))
        layout = reader.layouts[group]
        for tensor, place in zip(layout.tensors, layout.places, strict=True):
            found = raw[place : place + tensor.size_bytes].view(torch.float32).view(tensor.shape)
            assert torch.equal(found, tensors[tensor.name])
    assert reader.load(2).size >= 1


def test_whole_pages_are_read_and_nothing_beyond_a_group_s_own(model: StoredModel) -> None:
    reader = GroupReader(model, [model.tensors[1:3], model.tensors[3:4]], mode="direct")
    sizes = [reader.size_bytes(group) for group in range(2)]
    buffer = HostBuffer(sum(sizes) + PAGE)
    raw = from_dlpack(buffer)
    raw.fill_(7)
    reader.read_many([(0, 0), (1, sizes[0])], buffer)
    assert (raw[sum(sizes) :] == 7).all()
    for group, start in ((0, 0), (1, sizes[0])):
        alone = from_dlpack(reader.load(group))
        layout = reader.layouts[group]
        for tensor, place in zip(layout.tensors, layout.places, strict=True):
            found = raw[start + place : start + place + tensor.size_bytes]
            assert torch.equal(found, alone[place : place + tensor.size_bytes])


def test_a_read_can_be_cancelled(model: StoredModel) -> None:
    reader, control = GroupReader(model, [model.tensors]), Control()
    control.cancel()
    with pytest.raises(LoadCancelledError):
        reader.read(0, HostBuffer(reader.size_bytes(0)), control)


def test_files_that_changed_are_not_mixed_with_what_was_read(model: StoredModel) -> None:
    reader = GroupReader(model, [model.tensors])
    path = model.checkpoint.files[0].path
    path.write_bytes(path.read_bytes())
    with pytest.raises(InvalidCheckpointError, match="changed since it was opened"):
        reader.load(0)
