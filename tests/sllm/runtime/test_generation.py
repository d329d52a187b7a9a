"""An answer is the same wherever it is taken up again, and leaves the cache as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sllm.core.errors import CacheFullError
from sllm.core.sampling import SamplingParameters
from sllm.runtime import generation
from sllm.runtime.generation import generate
from tests.sllm.runtime.tiny_models import TinyModel, make_model, random_tokens

PROMPT = random_tokens(11)


@pytest.fixture(scope="module", params=["llama", "qwen3-next"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


def _answer(model: TinyModel, answer: list[int] | None = None, **asked: Any) -> list[int]:
    ends = asked.pop("ends", ())
    parameters = SamplingParameters(**{"seed": 3, "max_tokens": 16, **asked})
    memory = model.memory(tokens=64, sequences=1)
    steps = generate(model.decoder, memory, PROMPT, parameters, answer=answer or [], ends=ends)
    found = [choice.token for choice in steps]
    assert (memory.books.pages_free, memory.books.slots_free) == (4, 1)
    return found


def test_the_greedy_answer_is_transformers_s(model: TinyModel) -> None:
    prompt = torch.tensor([PROMPT])
    asked = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None}
    generated = model.theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    assert _answer(model, temperature=0) == generated[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("asked", [{"temperature": 0}, {}, {"top_p": 0.9, "repeat_penalty": 1.3}])
def test_an_answer_goes_on_as_it_would_have(model: TinyModel, asked: dict[str, Any]) -> None:
    whole = _answer(model, **asked)
    assert len(whole) == 16
    for cut in (0, 1, 7, 15, 16):
        assert _answer(model, whole[:cut], **asked) == whole[cut:]


def test_seeds_differ(model: TinyModel) -> None:
    assert _answer(model, seed=1) != _answer(model, seed=2)
    assert _answer(model, seed=1) == _answer(model, seed=1)


def test_an_answer_ends_after_its_last_token(model: TinyModel) -> None:
    whole = _answer(model)
    end = whole[5]
    shorter = whole[: whole.index(end) + 1]
    assert _answer(model, ends=[end]) == shorter
    assert _answer(model, shorter, ends=[end]) == []


def test_a_long_prompt_is_taken_in_chunks(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _answer(model)
    for size in (1, 4, 11):
        monkeypatch.setattr(generation, "CHUNK_TOKENS", size)
        assert _answer(model) == whole


def test_what_does_not_fit_gives_its_place_back(model: TinyModel) -> None:
    memory = model.memory(tokens=16, sequences=1)
    parameters = SamplingParameters(seed=0, max_tokens=50)
    with pytest.raises(CacheFullError):
        list(generate(model.decoder, memory, PROMPT, parameters))
    assert memory.books.pages_free == 1
    steps = generate(model.decoder, memory, PROMPT, parameters)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert memory.books.slots_free == 1
