"""Every architecture equals Transformers, however its tokens are cut into batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers.kernel_operations import KernelOperations
from sllm.runtime.weights.resident import ResidentWeights
from tests.sllm.runtime.tiny_models import (
    CONFIGS,
    TOLERANCE,
    TinyModel,
    make_model,
    random_tokens,
    run_whole,
)

LENGTH = 23


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def test_a_prompt_equals_transformers(model: TinyModel) -> None:
    tokens = random_tokens(LENGTH)
    expected = model.expected(tokens)
    assert expected.std() > 0.1, "logits that do not differ prove nothing"
    assert _error(run_whole(model, tokens), expected) <= TOLERANCE


def test_decoding_step_by_step_equals_transformers(model: TinyModel) -> None:
    tokens, prompt = random_tokens(LENGTH), LENGTH - 8
    memory = model.memory()
    sequence = memory.open()
    past = None
    for start, end in [(0, prompt), *((n, n + 1) for n in range(prompt, LENGTH))]:
        with torch.inference_mode():
            done = model.theirs(
                torch.tensor([tokens[start:end]]), past_key_values=past, use_cache=True
            )
        past = done.past_key_values
        piece = Piece(sequence=sequence, tokens=tokens[start:end])
        logits = model.decoder.forward(Batch.of([piece]), memory)
        assert _error(logits[0], done.logits[0, -1]) <= TOLERANCE
    assert sequence.length == LENGTH


def test_a_prompt_in_chunks_equals_transformers(model: TinyModel) -> None:
    tokens = random_tokens(LENGTH, seed=1)
    memory = model.memory()
    sequence = memory.open()
    past, start = None, 0
    for size in (3, 1, 12, 7):
        chunk = tokens[start : start + size]
        with torch.inference_mode():
            done = model.theirs(torch.tensor([chunk]), past_key_values=past, use_cache=True)
        past, start = done.past_key_values, start + size
        piece = Piece(sequence=sequence, tokens=chunk, outputs=size)
        logits = model.decoder.forward(Batch.of([piece]), memory)
        assert _error(logits, done.logits[0]) <= TOLERANCE


def test_a_request_does_not_depend_on_who_else_is_in_the_batch(model: TinyModel) -> None:
    prompts = [random_tokens(length, seed=length) for length in (4, 11, 1, 17)]
    # One request is decoding, two are in the middle of their prompts, one has not begun.
    cuts = [3, 6, 0, 8]
    alone = [
        _run_together(model, [prompt], [cut])[0] for prompt, cut in zip(prompts, cuts, strict=True)
    ]
    for ours, expected in zip(_run_together(model, prompts, cuts), alone, strict=True):
        assert _error(ours, expected) <= TOLERANCE


def _run_together(model: TinyModel, prompts: list[list[int]], cuts: list[int]) -> torch.Tensor:
    """Return the last logits of each prompt: all of them in two batches, up to a cut and on."""
    memory = model.memory()
    cut_prompts = [(memory.open(), prompt, cut) for prompt, cut in zip(prompts, cuts, strict=True)]
    first = [Piece(sequence=s, tokens=prompt[:cut]) for s, prompt, cut in cut_prompts if cut]
    if first:
        model.decoder.forward(Batch.of(first), memory)
    rest = [Piece(sequence=s, tokens=prompt[cut:]) for s, prompt, cut in cut_prompts]
    return model.decoder.forward(Batch.of(rest), memory)


def test_a_place_in_the_cache_is_as_new_when_it_is_used_again(model: TinyModel) -> None:
    memory = model.memory(tokens=64, sequences=1)
    for seed in (1, 2, 1):
        tokens = random_tokens(LENGTH, seed)
        sequence = memory.open()
        logits = model.decoder.forward(Batch.of([Piece(sequence=sequence, tokens=tokens)]), memory)
        assert _error(logits[0], run_whole(model, tokens)[-1]) <= TOLERANCE
        sequence.close()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "qwen3.5-moe"])
def test_a_gpu_s_operations_compute_the_same(name: str) -> None:
    """Prompts, then steps alone, and steps with prompts between them."""
    model = make_model(name)
    prompts = [random_tokens(length, seed=length) for length in (3, 1, 18, 2)]
    found = []
    for operations in (None, KernelOperations()):
        decoder = Decoder(model.config, model.source, operations=operations)
        memory = model.memory()
        sequences = [memory.open() for _ in prompts]
        for turn in ([2, 0], [0, 2], [2, 3, 0]):
            pieces = [
                Piece(sequence=sequences[i], tokens=[7] if sequences[i].length else prompts[i])
                for i in turn
            ]
            found.append(decoder.forward(Batch.of(pieces), memory))
    half = len(found) // 2
    for ours, expected in zip(found[half:], found[:half], strict=True):
        assert _error(ours, expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen3-next", "qwen3.5-moe", "mistral"])
@pytest.mark.parametrize("cuts", [(0, 150), (0, 70, 71, 150)], ids=["whole", "cut"])
def test_a_long_prompt_equals_transformers(name: str, cuts: tuple[int, ...]) -> None:
    """Rounding adds up in the states of gated DeltaNet: Transformers' own results differ by 7e-5
    between a prompt in one piece and the same in 150.
    """
    model, tokens = make_model(name), random_tokens(cuts[-1])
    memory, past = model.memory(), None
    sequence = memory.open()
    for start, end in pairwise(cuts):
        chunk = tokens[start:end]
        with torch.inference_mode():
            done = model.theirs(torch.tensor([chunk]), past_key_values=past, use_cache=True)
        past = done.past_key_values
        piece = Piece(sequence=sequence, tokens=chunk, outputs=len(chunk))
        logits = model.decoder.forward(Batch.of([piece]), memory)
        assert _error(logits, done.logits[0]) <= 2 * TOLERANCE


@pytest.mark.parametrize("name", ["llama-biases", "qwen3-moe", "qwen3-next"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_that_of_transformers(name: str, dtype: torch.dtype) -> None:
    model, tokens = make_model(name), random_tokens(LENGTH)
    exact = model.expected(tokens)
    for parameter in model.theirs.parameters():  # Not the frequencies, which stay in float32.
        parameter.data = parameter.data.to(dtype)
    error = _error(model.expected(tokens).float(), exact)
    source = ResidentWeights.of(model.config, model.theirs.state_dict())
    memory = CacheMemory(model.config, tokens=64, sequences=1, dtype=dtype)
    piece = Piece(sequence=memory.open(), tokens=tokens, outputs=LENGTH)
    logits = Decoder(model.config, source, dtype=dtype).forward(Batch.of([piece]), memory)
    assert 0 < _error(logits, exact) <= 2 * error
