"""A layer computed natively equals PyTorch's operations, in the same bits however it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers.host_layer import SHORT_SPAN, HostLayers
from sllm.runtime.weights.resident import ResidentWeights
from tests.sllm.runtime.tiny_models import TOLERANCE, TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.config.model import ModelConfig

DENSE = {
    "llama": {},
    "llama-biases": {},
    "llama-yarn-scaled": {},
    "mistral": {},
    "qwen2": {"head_dim": 16},
    "qwen3": {},
}
TURNS = [[0, 2], [0, 1, 2], [2, 3, 0, 1], [1, 3]]


def weights(model: TinyModel, dtype: torch.dtype) -> ResidentWeights:
    """Return numbers that bfloat16 has, its projections stored in some dtype."""
    stored = {
        name: tensor.bfloat16().to(dtype) if name.endswith("_proj.weight") else tensor
        for name, tensor in model.theirs.state_dict().items()
    }
    return ResidentWeights.of(model.config, stored)


@pytest.fixture(scope="module", params=list(DENSE))
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param, **DENSE[request.param])


def decoder(model: TinyModel, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    return Decoder(model.config, weights(model, dtype))


def converse(model: TinyModel, of: Decoder, turns: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the last states of prompts and steps in batches, each turn naming who is in it."""
    prompts = [random_tokens(length, seed=length) for length in (9, 1, SHORT_SPAN + 24, 6)]
    memory, found = model.memory(), []
    sequences = [memory.open() for _ in prompts]
    for turn in turns:
        pieces = [
            Piece(sequence=sequences[i], tokens=[7] if sequences[i].length else prompts[i])
            for i in turn
        ]
        found.append(of.hidden(Batch.of(pieces), memory))
    return found


def is_native(config: ModelConfig, source: ResidentWeights) -> bool:
    with source.layer(0) as layer:
        return HostLayers(config).find(0, layer) is not None


def test_prompts_and_steps_equal_pytorch_s(model: TinyModel) -> None:
    assert is_native(model.config, weights(model, torch.bfloat16))
    found = converse(model, decoder(model), TURNS)
    expected = converse(model, decoder(model, torch.float32), TURNS)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE


def test_a_step_has_the_same_bits_with_others_in_the_batch(model: TinyModel) -> None:
    of = decoder(model)
    alone = converse(model, of, [[0], [0], [0]])
    with_a_prompt = converse(model, of, [[0], [0, 2], [0, 1, 3]])
    for ours, theirs in zip(with_a_prompt, alone, strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_guesses_have_the_bits_of_steps(model: TinyModel) -> None:
    of, memory = decoder(model), model.memory()
    steps, guesses = memory.open(), memory.open()
    tokens = random_tokens(SHORT_SPAN)
    one_by_one = [
        of.hidden(Batch.of([Piece(sequence=steps, tokens=[token])]), memory) for token in tokens
    ]
    piece = Piece(sequence=guesses, tokens=tokens, outputs=len(tokens))
    assert torch.equal(of.hidden(Batch.of([piece]), memory), torch.cat(one_by_one))


def test_threads_change_no_bit(model: TinyModel) -> None:
    of = decoder(model)
    expected = converse(model, of, TURNS)
    torch.set_num_threads(3)
    try:
        found = converse(model, of, TURNS[:1])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0][0], expected[0][0])


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-next"])
def test_layers_of_another_kind_are_left_to_pytorch(name: str) -> None:
    model = make_model(name)
    assert not is_native(model.config, weights(model, torch.bfloat16))


def test_floats_of_32_bits_are_left_to_pytorch() -> None:
    model = make_model("llama")
    assert not is_native(model.config, weights(model, torch.float32))
