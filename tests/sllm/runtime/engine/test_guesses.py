"""Guesses change how many passes an answer takes, and not one token of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sllm.runtime.config.families import parse_config
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.active import ActiveRequest
from sllm.runtime.engine.guesses import Lookup, Pace, takes_back
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from tests.sllm.runtime.engine.listening import Listener, answer, listen, make_request
from tests.sllm.runtime.tiny_models import CONFIGS, VOCABULARY, TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.core.requests import TokenRequest
    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.engine.guesses import Guesser

CONTEXT = 96


class _Counting(Decoder):
    """A decoder that counts its passes."""

    passes = 0

    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        self.passes += 1
        return super().forward(batch, memory)


class Oracle:
    """Guesses what it was told will come; every third guess is wrong if it errs."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], *, errs: bool) -> None:
        self._answers = answers
        self._errs = errs
        self.guessed = 0

    def guess(self, requests: Sequence[ActiveRequest], counts: Sequence[int]) -> list[list[int]]:
        found = []
        for request, count in zip(requests, counts, strict=True):
            prompt = request.request.prompt
            done = len(request.ids) - len(prompt)
            guesses = self._answers[prompt][done : done + count]
            self.guessed += len(guesses)
            if self._errs and len(guesses) > 2:
                guesses[2] = (guesses[2] + 1) % VOCABULARY
            found.append(guesses)
        return found


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3-moe", "qwen3-next"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


def _run(
    model: TinyModel,
    requests: list[TokenRequest],
    guesser: Guesser | None,
    *,
    tokens: int = 512,
    spares: int = 4,
) -> tuple[list[list[int]], int]:
    """Return the answers to requests that run together, and how many passes they took."""
    decoder = _Counting(model.config, model.source)
    memory = model.memory(tokens=tokens, sequences=4, spares=spares)
    limits = EngineLimits(context_tokens=CONTEXT, parallel=4, reserve_tokens=8)
    with TokenEngine(decoder, memory, limits, guesser=guesser) as engine:
        listeners = [listen(engine, request)[0] for request in requests]
        assert all(listener.last.error is None for listener in listeners)
    assert memory.books.pages_free == tokens // 16
    if memory.books.states is not None:
        assert len(list(iter(memory.books.states.take, None))) == spares
    return [listener.tokens for listener in listeners], decoder.passes


@pytest.mark.parametrize("asked", [{"temperature": 0}, {}, {"top_p": 0.8, "repeat_penalty": 1.2}])
@pytest.mark.parametrize("errs", [False, True])
def test_answers_are_the_same_with_right_guesses_and_wrong_ones(
    model: TinyModel, asked: dict[str, Any], *, errs: bool
) -> None:
    prompts = [random_tokens(length, seed=length) for length in (3, 11, 20)]
    requests = [make_request(prompt, max_tokens=50, **asked) for prompt in prompts]
    expected, passes = _run(model, requests, None)
    told = dict(zip(map(tuple, prompts), expected, strict=True))
    for tokens in (512, CONTEXT):
        oracle = Oracle(told, errs=errs)
        found, fewer = _run(model, requests, oracle, tokens=tokens)
        assert found == expected
        assert oracle.guessed > 100
        if tokens == 512:
            assert fewer < passes / (2 if errs else 5)


def test_an_answer_that_repeats_itself_takes_fewer_passes(model: TinyModel) -> None:
    request = make_request(random_tokens(5), temperature=0, max_tokens=90)
    (expected,), passes = _run(model, [request], None)
    (found,), fewer = _run(model, [request], Lookup())
    assert found == expected
    assert fewer <= passes
    biased = make_request([1, 2], logit_bias={7: 100}, max_tokens=60)
    (found,), fewer = _run(model, [biased], Lookup())
    assert found == [7] * 60
    assert fewer < 15


@pytest.mark.parametrize("errs", [False, True])
def test_states_are_guessed_for_as_far_as_there_is_room_to_save_them(*, errs: bool) -> None:
    model = make_model("qwen3-next")
    requests = [make_request(random_tokens(9, seed=n), max_tokens=50) for n in range(3)]
    expected, passes = _run(model, requests, None)
    told = {request.prompt: found for request, found in zip(requests, expected, strict=True)}
    needed = []
    for spares in (0, 1, 3):
        found, fewer = _run(model, requests, Oracle(told, errs=errs), spares=spares)
        assert found == expected
        needed.append(fewer)
    assert needed[0] == passes
    assert needed[0] > needed[2]


def test_an_answer_ends_in_the_middle_of_its_guesses() -> None:
    model, prompt = make_model("llama"), random_tokens(7)
    (whole,), _ = _run(model, [make_request(prompt, max_tokens=40)], None)
    oracle = Oracle({tuple(prompt): whole}, errs=False)
    for place in range(0, 40, 3):
        ends = frozenset({whole[place]})
        (found,), _ = _run(model, [make_request(prompt, max_tokens=40, ends=ends)], oracle)
        assert found == whole[: whole.index(whole[place]) + 1]
    for length in range(1, 20):
        (found,), _ = _run(model, [make_request(prompt, max_tokens=length)], oracle)
        assert found == whole[:length]


def test_a_whole_context_may_be_guessed() -> None:
    model, prompt = make_model("llama"), random_tokens(7)
    request = make_request(prompt, max_tokens=1000)
    (whole,), _ = _run(model, [request], None)
    assert len(whole) == CONTEXT - 7
    assert _run(model, [request], Oracle({tuple(prompt): whole}, errs=False))[0] == [whole]


def test_a_failing_guesser_ends_the_requests_of_its_pass(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama")
    limits = EngineLimits(context_tokens=CONTEXT)
    memory = model.memory()
    with TokenEngine(model.decoder, memory, limits, guesser=Oracle({}, errs=False)) as engine:
        failed, _ = listen(engine, make_request([5]))
        assert isinstance(failed.last.error, KeyError)
        assert len(answer(engine, make_request([5], max_tokens=1))) == 1
    assert "a pass over 1 requests failed" in caplog.text


def _ask(ids: list[int], count: int = 5) -> list[int]:
    active = ActiveRequest(0, make_request(ids), Listener(), context_tokens=CONTEXT)
    lookup = Lookup()
    return lookup.guess([active], [count])[0]


def test_a_lookup_finds_the_longest_run_and_the_latest() -> None:
    assert _ask([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], 2) == [4, 5]
    assert _ask([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3], 2) == [4, 9]
    assert _ask([2, 3, 4, 9, 2, 3, 7, 1, 2, 3], 2) == [7, 1]
    assert _ask([5, 5, 5], 4) == [5, 5, 5, 5]
    assert _ask([8, 6, 7, 6, 7], 5) == [6, 7, 6, 7, 6]
    assert _ask([1, 2, 3, 4]) == []
    assert _ask([1]) == []


def test_guessing_rests_when_too_little_is_right_and_grows_when_all_is() -> None:
    pace = Pace()
    assert pace.count(10) == 4
    pace.note(guessed=4, right=4, length=15)
    assert pace.count(15) == 8
    for _ in range(8):
        pace.note(guessed=pace.count(20) or 2, right=0, length=20)
    assert pace.count(21) == 0
    assert pace.count(1000) > 0


def test_only_what_can_be_taken_back_is_guessed() -> None:
    for name in ("mistral", "qwen3-next"):
        assert takes_back(parse_config(CONFIGS[name]().to_dict()))
    assert not takes_back(parse_config(CONFIGS["llama-dynamic"]().to_dict()))
