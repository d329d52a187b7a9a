"""A group that was read has every byte, and a failed read says which file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store.errors import InvalidCheckpointError, LoadCancelledError
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
