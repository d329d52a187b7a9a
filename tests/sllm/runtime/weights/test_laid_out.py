"""A checkpoint that is laid out once computes the bits of its source, with nothing left to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.streaming import SMALL, SMALL_MOE, write_model
from sllm.runtime.weights import device_placement
from sllm.runtime.weights.expert_images import ExpertImages
from sllm.runtime.weights.images import GroupImage
from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import device_needs, open_on_device
from sllm.runtime.weights.residency import Budgets, plan_residency
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.errors import InvalidRequestError, WriteError
from tests.sllm.runtime.tiny_models import answer_logits, make_model
from tests.sllm.runtime.weights.deferred_lane import DeferredLane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOKENS = [3, 90, 4]
SHAPES = {
    "dense": replace(SMALL, hidden=64, width=96, heads=2, head_dim=32, kv_heads=1),
    "experts": replace(SMALL_MOE, hidden=64, width=32, heads=2, head_dim=32, experts=4),
}


def _write(name: str, directory: Path, layers: int = 4) -> Path:
    source = write_model(directory / f"{name}.gguf", SHAPES[name], layers)
    write_laid_out(source, directory / "planes")
    return source


def _compute(path: Path, **changes: object) -> torch.Tensor:
    model = ModelGroups.open(path)
    plan = plan_residency(model.needs(), Budgets(has_host=True))
    plan = replace(plan, **changes)  # type: ignore[arg-type]
    with open_on_device(model, plan, DeferredLane()) as source:
        return answer_logits(source, TOKENS, turns=2)


@pytest.mark.parametrize("name", SHAPES)
def test_every_tier_computes_the_bits_of_the_source(name: str, tmp_path: Path) -> None:
    source = _write(name, tmp_path)
    expected = _compute(source)
    planes = tmp_path / "planes"
    experts = {"expert_slots": 3, "host_expert_slots": 3} if name == "experts" else {}
    split = {"resident": (0,), "pinned": (1,), "disk": (2, 3), "slots": 2, "staging": 1}
    assert torch.equal(_compute(planes), expected)
    assert torch.equal(_compute(planes, **split, **experts), expected)
    with StoredWeights.open(planes) as host:
        assert torch.equal(answer_logits(host, TOKENS, turns=2), expected)


def test_nothing_is_laid_out_anew_and_experts_lie_alike(tmp_path: Path) -> None:
    source = _write("experts", tmp_path, layers=2)
    model = ModelGroups.open(tmp_path / "planes")
    assert all(GroupImage(layout).is_stored for layout in model.reader.layouts)
    images = ExpertImages(model)
    assert images.scratch_bytes == 0
    slot = torch.zeros(images.slot_bytes, dtype=torch.uint8)
    assert images.common_planes(0, slot) is not None
    assert all(len(model.reader.layouts[group].reads) == 1 for group in model.experts.values())
    assert device_needs(model) == model.needs()
    grown = model.slot_bytes / ModelGroups.open(source).slot_bytes
    assert grown <= 1.5, "but for the ends of pages, planes take no more bytes"


def test_groups_of_experts_have_the_same_bits_whoever_laid_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _write("experts", tmp_path, layers=1)
    monkeypatch.setattr(device_placement, "has_kernels", lambda _: True)
    expected = _compute(source)
    found = _compute(tmp_path / "planes", expert_slots=3, host_expert_slots=2)
    assert torch.equal(found, expected)


def test_a_model_of_floats_keeps_its_numbers_and_its_small_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_model("llama-tied").theirs.save_pretrained(source)
    (source / "note.txt").write_text("as it was")
    write_laid_out(source, tmp_path / "planes")
    with StoredWeights.open(source) as one, StoredWeights.open(tmp_path / "planes") as other:
        for index in range(2):
            with one.layer(index) as stored, other.layer(index) as found:
                for name, matrix in stored.matrices.items():
                    numbers = matrix.dequantize(torch.float32)
                    assert torch.equal(found.matrices[name].dequantize(torch.float32), numbers)
        # Other places in memory add up in another order.
        expected = answer_logits(one, TOKENS)
        torch.testing.assert_close(answer_logits(other, TOKENS), expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "planes" / "note.txt").read_text() == "as it was"


def test_what_ends_it_leaves_nothing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "dense.gguf", SHAPES["dense"], 2)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_laid_out(source, tmp_path / "planes", on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["dense.gguf"]
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        write_laid_out(source, tmp_path / "file" / "planes")


def test_one_file_of_tensors_is_not_enough(tmp_path: Path) -> None:
    make_model("llama").theirs.save_pretrained(tmp_path / "source")
    with pytest.raises(InvalidRequestError, match="give the directory"):
        write_laid_out(tmp_path / "source" / "model.safetensors", tmp_path / "planes")
