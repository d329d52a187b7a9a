"""Experts lie alike in their slots, and have the numbers of their stored bytes in every bit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from benchmarks.streaming import SMALL_MOE, write_model
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.eviction import ExpertKey
from sllm.runtime.weights.expert_images import ExpertImages
from sllm.runtime.weights.model_groups import ModelGroups
from tests.sllm.runtime.tiny_models import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_blocks_become_planes_in_the_slot_where_they_arrive(tmp_path: Path) -> None:
    shapes = replace(SMALL_MOE, hidden=64, width=32, heads=2, head_dim=32, experts=3, chosen=2)
    model = ModelGroups.open(write_model(tmp_path / "moe.gguf", shapes, 1))
    images = ExpertImages(model)
    assert images.scratch_bytes
    scratch = torch.zeros(images.scratch_bytes, dtype=torch.uint8)
    for key, group in model.experts.items():
        raw = from_dlpack(model.reader.load(group))
        slot = torch.zeros(images.slot_bytes, dtype=torch.uint8)
        slot[: len(raw)] = raw
        stored = model.assemble_expert(key, raw)
        images.lay_out(key, slot, scratch)
        found, planes = images.view(key, slot), images.common_planes(key.layer, slot)
        assert planes is not None
        for name in ("gate", "up", "down"):
            matrix = getattr(found, name)
            assert isinstance(matrix, PlanarMatrix)
            assert matrix.planes.low.data_ptr() == getattr(planes, name).low.data_ptr()
            numbers = getattr(stored, name).dequantize(torch.float32)
            assert torch.equal(matrix.dequantize(torch.float32), numbers)


def test_experts_of_floats_stay_as_they_are_stored(tmp_path: Path) -> None:
    make_model("qwen3-moe").theirs.save_pretrained(tmp_path)
    model = ModelGroups.open(tmp_path)
    images = ExpertImages(model)
    assert images.scratch_bytes == 0
    assert images.slot_bytes == model.slot_bytes
    key = ExpertKey(0, 1)
    slot = from_dlpack(model.reader.load(model.experts[key]))
    images.lay_out(key, slot, slot[:0])
    assert images.common_planes(0, slot) is None
    weight = model.assemble_expert(key, slot).down.dequantize(torch.float32)
    assert torch.equal(images.view(key, slot).down.dequantize(torch.float32), weight)
