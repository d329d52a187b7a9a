"""A draft guesses what its own model would say, and has a request's place only while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sllm.core.errors import UnsupportedModelError
from sllm.runtime import sampler
from sllm.runtime.config.families import parse_config
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine import passes
from sllm.runtime.engine.draft import Draft, check_draft
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from tests.sllm.runtime.engine.listening import listen, make_request
from tests.sllm.runtime.engine.test_guesses import CONTEXT, _Counting
from tests.sllm.runtime.tiny_models import CONFIGS, TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    import torch

    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.memory import CacheMemory


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model("llama")


def _run(
    model: TinyModel, draft: TinyModel | None, *, tokens: int = 512, **asked: Any
) -> tuple[list[list[int]], int]:
    decoder = _Counting(model.config, model.source)
    limits = EngineLimits(context_tokens=CONTEXT, parallel=3, pass_tokens=16)
    guesser, memory = None, None
    if draft is not None:
        memory = draft.memory(tokens=tokens, sequences=3)
        guesser = Draft(draft.decoder, memory, pass_tokens=16)
    with TokenEngine(decoder, model.memory(), limits, guesser=guesser) as engine:
        requests = [
            make_request(random_tokens(7 * n, seed=n), max_tokens=50, seed=n, **asked)
            for n in range(1, 6)
        ]
        listeners = [listen(engine, request)[0] for request in requests]
        assert all(listener.last.error is None for listener in listeners)
    if guesser is not None:
        assert memory is not None
        guesser.guess([], [])
        assert memory.books.slots_free == 3
        assert memory.books.pages_free == -(-tokens // 16)
    return [listener.tokens for listener in listeners], decoder.passes


@pytest.mark.parametrize("asked", [{"temperature": 0}, {}, {"top_p": 0.8, "repeat_penalty": 1.2}])
def test_answers_are_the_same_with_a_draft(model: TinyModel, asked: dict[str, Any]) -> None:
    expected, passes = _run(model, None, **asked)
    found, fewer = _run(model, model, **asked)
    assert found == expected
    assert fewer < passes / 4, "the model guesses itself"
    found, _ = _run(model, make_model("llama-one-head"), **asked)
    assert found == expected


@pytest.mark.parametrize(
    "asked", [{"temperature": 0}, {}, {"top_k": 5, "repeat_penalty": 1.2}, {"logprobs": 2}]
)
@pytest.mark.parametrize("drafted", [False, True])
def test_answers_are_the_same_where_rows_are_drawn_together(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], *, drafted: bool
) -> None:
    expected, _ = _run(model, None, **asked)
    for module in (passes, sampler):
        monkeypatch.setattr(module, "rows_at_a_time", lambda device, vocabulary: 8)
    assert _run(model, model if drafted else None, **asked)[0] == expected


def test_a_draft_without_room_guesses_for_whom_it_has_room(model: TinyModel) -> None:
    expected, passes = _run(model, None)
    found, fewer = _run(model, model, tokens=64)
    assert found == expected
    assert fewer < passes


def test_a_short_context_of_the_draft_ends_its_guesses(model: TinyModel) -> None:
    expected, _ = _run(model, None)
    assert _run(model, make_model("llama", max_position_embeddings=32))[0] == expected


def test_a_draft_computes_what_prompts_have_in_common_once(model: TinyModel) -> None:
    counted = _Tokens(model.config, model.source)
    memory = model.memory(tokens=256, sequences=2)
    guesser = Draft(counted, memory, pass_tokens=16)
    limits = EngineLimits(context_tokens=CONTEXT, parallel=1, pass_tokens=64)
    common, took, answers = random_tokens(50, seed=9), [], []
    with TokenEngine(model.decoder, model.memory(), limits, guesser=guesser) as engine:
        for last in (1, 2, 1):
            before = counted.tokens
            request = make_request([*common, last], max_tokens=8, temperature=0)
            listener = listen(engine, request)[0]
            assert listener.last.error is None
            answers.append(listener.tokens)
            took.append(counted.tokens - before)
    assert took[0] > 50
    assert took[1] == took[2] == took[0] - 48, "three pages of 16 tokens are there"
    assert answers[0] == answers[2]


class _Tokens(Decoder):
    """A decoder that counts the tokens it computes."""

    tokens = 0

    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        self.tokens += len(batch.ids)
        return super().forward(batch, memory)


def test_only_a_model_of_the_same_tokens_can_be_a_draft(model: TinyModel) -> None:
    check_draft(model.config, model.config)
    hybrid = parse_config(CONFIGS["qwen3-next"]().to_dict())
    check_draft(model.config, hybrid)
    dynamic = parse_config(CONFIGS["llama-dynamic"]().to_dict())
    with pytest.raises(UnsupportedModelError, match="no draft can guess"):
        check_draft(model.config, dynamic)
    with pytest.raises(UnsupportedModelError, match="cannot be a draft"):
        check_draft(dynamic, model.config)
    with pytest.raises(UnsupportedModelError, match="cannot be a draft"):
        check_draft(hybrid, model.config)
    with pytest.raises(UnsupportedModelError, match="same tokenizer"):
        check_draft(make_model("llama", vocab_size=100).config, model.config)
