"""Passes that nobody asked for leave nothing behind."""

from __future__ import annotations

import pytest

from sllm.core.sampling import SamplingParameters
from sllm.runtime.engine.first_passes import PROMPT_TOKENS, compute_first
from sllm.runtime.generation import generate
from tests.sllm.runtime.tiny_models import make_model, random_tokens


@pytest.mark.parametrize(
    ("context_tokens", "passes"), [(256, 3), (PROMPT_TOKENS, 3), (3, 3), (2, 2)]
)
def test_a_prompt_and_steps_are_computed_as_far_as_there_is_context(
    context_tokens: int, passes: int
) -> None:
    model = make_model("llama")
    memory = model.memory()
    free = memory.books.pages_free
    assert compute_first(model.decoder, memory, context_tokens=context_tokens) == passes
    assert memory.books.pages_free == free


@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
def test_what_is_asked_afterwards_is_answered_as_ever(name: str) -> None:
    model = make_model(name)
    parameters = SamplingParameters(seed=0, max_tokens=8, temperature=0)
    fresh, used = model.memory(sequences=1), model.memory(sequences=1)
    expected = [one.token for one in generate(model.decoder, fresh, random_tokens(9), parameters)]
    compute_first(model.decoder, used, context_tokens=256)
    found = [one.token for one in generate(model.decoder, used, random_tokens(9), parameters)]
    assert found == expected
