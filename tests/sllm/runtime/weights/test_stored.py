"""A checkpoint on disk computes as its model does, in any format, resident or streamed."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sllm.core.errors import BudgetError, UnsupportedModelError
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.errors import InvalidCheckpointError
from sllm_store.transformers import load_model
from tests.sllm.runtime.tiny_models import (
    TOLERANCE,
    TinyModel,
    answer_logits,
    make_model,
    random_tokens,
    run_whole,
)

TOKENS = random_tokens(9)


def _save(model: TinyModel, path: Path, **config: Any) -> Path:
    model.theirs.save_pretrained(path)
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, **config}))
    return path


def _compute(source: StoredWeights, turns: int = 3) -> torch.Tensor:
    return answer_logits(source, TOKENS, turns=turns)


@pytest.fixture(params=["llama", "llama-tied", "qwen3-moe", "qwen3-next", "qwen3.5-moe"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


def test_a_published_model_computes_as_it_does_in_transformers(
    model: TinyModel, tmp_path: Path
) -> None:
    with StoredWeights.open(_save(model, tmp_path)) as source:
        logits = _compute(source, turns=1)
    assert float((logits - model.expected(TOKENS)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_streamed_layers_compute_the_same_bits(
    model: TinyModel, tmp_path: Path, slots: int
) -> None:
    path = _save(model, tmp_path)
    with StoredWeights.open(path) as resident:
        expected, everything = _compute(resident), resident.residency.device_bytes
        assert resident.counts is None
        assert resident.expert_counts is None
    needs = ModelGroups.open(path).needs()
    for experts in (1, needs.experts_chosen, needs.experts):
        budget = needs.ends_bytes + max(needs.layer_bytes) * slots + needs.expert_bytes * experts
        budget = min(budget, everything - 1)
        with StoredWeights.open(path, budget_bytes=budget, slots=slots) as source:
            assert torch.equal(_compute(source), expected)
            assert source.residency.device_bytes <= budget
            leased = 0 if source.counts is None else source.counts.leased
            assert leased == 3 * len(source.residency.streamed)
            assert (source.expert_counts is None) == (
                source.residency.expert_slots == needs.experts
            )


def test_a_pass_that_fails_does_not_confuse_the_next(model: TinyModel, tmp_path: Path) -> None:
    path = _save(model, tmp_path)
    with ExitStack() as stack:
        resident = stack.enter_context(StoredWeights.open(path))
        needs = ModelGroups.open(path).needs()
        least = needs.ends_bytes + max(needs.layer_bytes) + needs.expert_bytes
        source = stack.enter_context(StoredWeights.open(path, budget_bytes=least))
        with pytest.raises(ZeroDivisionError), source.layer(source.residency.streamed[0]):
            raise ZeroDivisionError
        assert torch.equal(_compute(source), _compute(resident))


def test_half_floats_are_computed_in_float32(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        for parameter in model.theirs.parameters():
            parameter.copy_(parameter.bfloat16())
    half = copy.deepcopy(model.theirs).bfloat16()
    half.save_pretrained(tmp_path)
    with StoredWeights.open(tmp_path) as source:
        assert source.config.dtype == "bfloat16"
        logits = _compute(source, turns=1)
    assert float((logits - model.expected(TOKENS)).abs().max()) <= TOLERANCE


def test_affine_weights_stay_in_four_bits(tmp_path: Path) -> None:
    """MLX's files: words, scales and biases for each matrix, and floats for the rest."""
    torch.manual_seed(3)
    shapes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2}
    model = make_model("llama", head_dim=64, **shapes)
    tensors: dict[str, torch.Tensor] = {}
    for name, values in model.theirs.state_dict().items():
        if values.dim() == 1:
            tensors[name] = values
            continue
        words, scales, biases = _quantise(values, group=64)
        stem = name.removesuffix(".weight")
        tensors |= {name: words, f"{stem}.scales": scales, f"{stem}.biases": biases}
        shifts = torch.arange(0, 32, 4)
        nibbles = ((words.view(torch.int32).unsqueeze(-1) >> shifts) & 15).view(*scales.shape, -1)
        decoded = nibbles * scales.float().unsqueeze(-1) + biases.float().unsqueeze(-1)
        values.copy_(decoded.view_as(values))
    save_file(tensors, tmp_path / "model.safetensors")
    quantization = {"group_size": 64, "bits": 4, "mode": "affine"}
    config = {**model.theirs.config.to_dict(), "quantization": quantization, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    with StoredWeights.open(tmp_path) as source:
        assert source.residency.device_bytes < sum(v.nbytes for v in model.theirs.parameters()) / 4
        logits = _compute(source, turns=1)
    assert float((logits - run_whole(model, TOKENS)).abs().max()) <= TOLERANCE


def _quantise(
    values: torch.Tensor, *, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grouped = values.view(len(values), -1, group)
    biases = grouped.amin(-1).half()
    scales = ((grouped.amax(-1) - biases) / 15).half()
    nibbles = ((grouped - biases.unsqueeze(-1)) / scales.unsqueeze(-1)).round().clamp(0, 15)
    words = (nibbles.long().view(len(values), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return words.to(torch.uint32), scales, biases


def test_what_cannot_be_computed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    model = make_model("llama")
    path = _save(model, tmp_path / "model")
    with pytest.raises(BudgetError, match="needs at least"):
        StoredWeights.open(path, budget_bytes=100)
    with pytest.raises(InvalidCheckpointError, match="is of layer 1"):
        StoredWeights.open(_save(model, tmp_path / "short", num_hidden_layers=1))
    with pytest.raises(InvalidCheckpointError, match="layer 2: the tensor"):
        StoredWeights.open(_save(model, tmp_path / "long", num_hidden_layers=3))
    quantization = {"group_size": 64, "bits": 8}
    eight = _save(model, tmp_path / "eight", quantization=quantization)
    with pytest.raises(UnsupportedModelError, match="bits is 8"):
        StoredWeights.open(eight)


# Chats and code, and what SmolLM2-135M-Instruct greedily answers.
GOLDEN = json.loads((Path(__file__).parents[3] / "golden/smollm2/greedy.json").read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_smollm2_computes_from_its_blocks_as_transformers_from_floats(smollm2: Path) -> None:
    theirs = load_model(smollm2, device_map="cpu", torch_dtype=torch.float32, store="in-process")
    with StoredWeights.open(smollm2) as source:
        assert source.residency.device_bytes < 1.001 * smollm2.stat().st_size
        memory = CacheMemory(source.config, tokens=512, sequences=3)
        texts = [golden["prompt"] + golden["answer"] for golden in GOLDEN]
        pieces = [Piece(sequence=memory.open(), tokens=t, outputs=len(t)) for t in texts]
        together = Decoder(source.config, source).forward(Batch.of(pieces), memory)
    logits = together.split([len(tokens) for tokens in texts])
    for golden, tokens, ours in zip(GOLDEN, texts, logits, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.tensor([tokens])).logits[0]
        assert torch.corrcoef(torch.stack((ours.flatten(), expected.flatten())))[0, 1] >= 0.9999
        assert float((ours - expected).abs().max()) <= 1e-3
        answered = ours[len(golden["prompt"]) - 1 : -1].argmax(-1)
        assert answered.tolist() == golden["answer"]
        assert torch.equal(ours.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_smollm2_streamed_computes_the_same_bits(smollm2: Path) -> None:
    found = []
    for budget_bytes in (None, 50_000_000):
        with StoredWeights.open(smollm2, budget_bytes=budget_bytes) as source:
            assert bool(source.residency.streamed) == bool(budget_bytes)
            memory = CacheMemory(source.config, tokens=64, sequences=1)
            piece = Piece(sequence=memory.open(), tokens=GOLDEN[0]["prompt"])
            found.append(Decoder(source.config, source).forward(Batch.of([piece]), memory))
    assert torch.equal(*found)
