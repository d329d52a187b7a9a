"""Experts fetched by way of a cache compute what resident ones do, in every way of storing them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.placement import place_on_host
from sllm.runtime.weights.residency import Budgets, plan_residency
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.errors import StoreError
from tests.sllm.runtime.tiny_models import (
    TOLERANCE,
    TinyModel,
    answer_logits,
    make_model,
    random_tokens,
)
from tests.sllm_store.convert.conftest import Workshop

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = random_tokens(9)
FORMS = ["single", "joined", "fused"]


def _store(model: TinyModel, path: Path, form: str) -> Path:
    """Write a checkpoint whose experts are tensors of their own, three per layer, or two."""
    path.mkdir()
    tensors = {}
    for name, tensor in model.theirs.state_dict().items():
        stem, found, kind = name.partition("mlp.experts.")
        if not found:
            tensors[name] = tensor
        elif kind == "down_proj":
            tensors |= _name(tensor, f"{stem}mlp.experts", kind, form)
        else:
            assert kind == "gate_up_proj"
            if form == "fused":
                tensors[name] = tensor
                continue
            for half, kind in zip(tensor.chunk(2, dim=1), ("gate_proj", "up_proj"), strict=True):
                tensors |= _name(half, f"{stem}mlp.experts", kind, form)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.theirs.config.to_dict(), default=str))
    return path


def _name(tensor: torch.Tensor, stem: str, kind: str, form: str) -> dict[str, torch.Tensor]:
    if form != "single":
        return {f"{stem}.{kind}": tensor}
    return {f"{stem}.{number}.{kind}.weight": part for number, part in enumerate(tensor)}


def _open(path: Path, experts: int) -> StoredWeights:
    """Open a checkpoint with slots for so many experts."""
    model = ModelGroups.open(path)
    plan = replace(plan_residency(model.needs(), Budgets()), expert_slots=experts)
    return StoredWeights(model, plan, place_on_host(model, plan))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-moe-mixed", "qwen3-next", "qwen3.5-moe"])
def test_cached_experts_compute_the_same_bits(name: str, form: str, tmp_path: Path) -> None:
    model = make_model(name)
    path = _store(model, tmp_path / "model", form)
    with StoredWeights.open(path) as resident:
        expected = answer_logits(resident, TOKENS)
    assert float((expected[:9] - model.expected(TOKENS)).abs().max()) <= TOLERANCE
    total = ModelGroups.open(path).needs().experts
    for experts in (1, 2, 5, total - 1):
        with _open(path, experts) as source:
            assert torch.equal(answer_logits(source, TOKENS), expected)
            assert source.expert_counts is not None
            assert source.expert_counts.misses >= total - experts > 0


def test_an_expert_is_one_read_where_its_tensors_are_neighbours(tmp_path: Path) -> None:
    model = ModelGroups.open(_store(make_model("qwen3-moe"), tmp_path / "model", "single"))
    for group in model.experts.values():
        assert len(model.reader.layouts[group].reads) == 1


def test_a_file_that_is_cut_short_fails_the_lease_and_not_the_cache(tmp_path: Path) -> None:
    path = _store(make_model("qwen3-moe"), tmp_path / "model", "single")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    with _open(path, 5) as source:
        file.write_bytes(whole[: len(whole) // 2])
        with source.layer(0) as weights:
            assert weights.experts is not None
            for _ in range(3):
                with pytest.raises(StoreError), weights.experts.lease([1, 2]) as experts:
                    dict(experts)
            assert source.expert_counts is not None
            assert source.expert_counts.hits == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_experts_that_a_gguf_has_in_one_tensor_are_fetched_by_themselves(tmp_path: Path) -> None:
    model = make_model("qwen3-moe")
    tensors = {}
    for name, tensor in model.theirs.state_dict().items():
        stem, found, kind = name.partition(".experts.")
        if not found:
            tensors[name] = tensor.numpy()
            continue
        parts = [(kind, tensor)]
        if kind == "gate_up_proj":
            parts = list(zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True))
        for projection, part in parts:
            for number, values in enumerate(part.numpy()):
                tensors[f"{stem}.experts.{number}.{projection}.weight"] = values
    workshop = Workshop(tmp_path)
    workshop.from_model(tensors, model.theirs.config.to_dict(), architecture="qwen3moe")
    with StoredWeights.open(workshop.gguf) as resident:
        expected = answer_logits(resident, TOKENS)
    with _open(workshop.gguf, 1) as source:
        assert torch.equal(answer_logits(source, TOKENS), expected)
