"""GGUF files of Qwen3-Next and Qwen3.5-MoE compute as the models that they are made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

from sllm.core.errors import BudgetError
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import open_weights
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.convert.importer import import_checkpoint
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
CORRELATION = 0.9999
ARCHITECTURES = {"qwen3-next": "qwen3next", "qwen3.5-moe": "qwen35moe"}


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _write(name: str, directory: Path, kind: Any = None) -> tuple[TinyModel, Workshop]:
    """Write a tiny model as a GGUF, its matrices in blocks of a kind if one is given."""
    model = make_model(name, linear_value_head_dim=16)  # So that all of its rows are whole blocks.
    model.theirs.save_pretrained(directory / "original")
    tensors = load_file(directory / "original/model.safetensors")
    config = json.loads((directory / "original/config.json").read_text())
    workshop = Workshop(directory)
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    workshop.from_model(arrays, config, architecture=ARCHITECTURES[name], kind=kind)
    return model, workshop


def test_it_computes_as_transformers_does_with_what_it_was_made_of(
    name: str, tmp_path: Path
) -> None:
    model, workshop = _write(name, tmp_path)
    with StoredWeights.open(workshop.gguf) as source:
        logits = answer_logits(source, TOKENS, turns=1)
    assert float((logits - model.expected(TOKENS)).abs().max()) <= TOLERANCE


def test_blocks_compute_as_the_numbers_that_they_stand_for(name: str, tmp_path: Path) -> None:
    _, workshop = _write(name, tmp_path, GGMLQuantizationType.Q8_0)
    import_checkpoint(workshop.gguf, workshop.imported)
    with StoredWeights.open(workshop.imported) as source:
        expected = answer_logits(source, TOKENS, turns=1)
    with StoredWeights.open(workshop.gguf) as source:
        logits = answer_logits(source, TOKENS, turns=1)
    both = torch.stack((logits.flatten(), expected.flatten()))
    assert float(torch.corrcoef(both)[0, 1]) >= CORRELATION


def test_streamed_layers_compute_the_same_bits(name: str, tmp_path: Path) -> None:
    _, workshop = _write(name, tmp_path, GGMLQuantizationType.Q8_0)
    with StoredWeights.open(workshop.gguf) as resident:
        expected = answer_logits(resident, TOKENS)
    model = ModelGroups.open(workshop.gguf)
    needs, made_bytes = model.needs(), model.reader.made_bytes
    assert made_bytes > 0
    least = made_bytes + needs.ends_bytes + max(needs.layer_bytes) + needs.expert_bytes
    with pytest.raises(BudgetError, match="needs at least"):
        open_weights(workshop.gguf, host_budget_bytes=least - made_bytes)
    with open_weights(workshop.gguf, host_budget_bytes=least) as source:
        assert source.residency.streamed
        assert torch.equal(answer_logits(source, TOKENS), expected)
