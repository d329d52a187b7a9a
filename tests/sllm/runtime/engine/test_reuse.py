"""What was computed is not computed again, and no answer is another one for it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from sllm.core.requests import Finish
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.active import ActiveRequest
from sllm.runtime.engine.guesses import Lookup
from sllm.runtime.engine.passes import Passes
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.throughput import Throughput
from sllm.runtime.generation import generate
from tests.sllm.runtime.engine.listening import Listener, make_request
from tests.sllm.runtime.tiny_models import TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    import torch

    from sllm.core.requests import TokenRequest
    from sllm.runtime.batch import Batch
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.engine.guesses import Guesser

CONTEXT = 128
PAGE = 16


class _Counting(Decoder):
    """A decoder that counts the tokens that it computes."""

    tokens = 0

    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        self.tokens += len(batch.tokens)
        return super().forward(batch, memory)


class Desk:
    """Passes that are computed when a test says so."""

    def __init__(
        self,
        model: TinyModel,
        *,
        tokens: int = 512,
        spares: int = 8,
        guesser: Guesser | None = None,
        **limits: Any,
    ) -> None:
        chosen = EngineLimits(**{"context_tokens": CONTEXT, "parallel": 3, **limits})
        self.decoder = _Counting(model.config, model.source)
        self.memory = model.memory(tokens=tokens, sequences=chosen.parallel, spares=spares)
        self.passes = Passes(
            self.decoder,
            self.memory,
            chosen,
            throughput=Throughput(),
            clock=lambda: 0.0,
            guesser=guesser,
        )
        self._number = 0

    def add(self, request: TokenRequest) -> tuple[ActiveRequest, Listener]:
        """Take a request."""
        listener = Listener()
        active = ActiveRequest(self._number, request, listener, context_tokens=CONTEXT)
        self._number += 1
        self.passes.add(active)
        return active, listener

    def step(self) -> None:
        """Compute a pass."""
        self.passes.compute(self.passes.plan())

    def answer(self, request: TokenRequest) -> tuple[list[int], int, int]:
        """Return a request's answer, the tokens that were computed, and those that were not."""
        before = self.decoder.tokens
        _, listener = self.add(request)
        while self.passes.busy:
            self.step()
        assert listener.last.error is None
        return listener.tokens, self.decoder.tokens - before, listener.steps[0].cached


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3-moe", "qwen3-next"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


def _expected(model: TinyModel, request: TokenRequest) -> list[int]:
    memory = model.memory(tokens=CONTEXT, sequences=1)
    steps = generate(model.decoder, memory, request.prompt, request.parameters)
    return [choice.token for choice in steps]


def test_a_chat_computes_what_is_new_and_no_more_than_a_page_of_what_is_not(
    model: TinyModel,
) -> None:
    desk, plain, history, computed = Desk(model), 0, random_tokens(20), 0
    for turn in range(4):
        request = make_request(history, max_tokens=12, seed=turn)
        found, count, cached = desk.answer(request)
        assert found == _expected(model, request)
        known = 0 if turn == 0 else len(history) - 9 - 1
        assert cached == known // PAGE * PAGE
        assert count == len(history) - cached + 11
        computed, plain = computed + count, plain + len(history) + 11
        history = [*history, *found, *random_tokens(9, seed=turn)]
    assert (computed, plain) == (122, 250)


def test_prompts_that_begin_alike_share_pages_while_they_run(model: TinyModel) -> None:
    desk, start = Desk(model, tokens=160), random_tokens(64)
    requests = [make_request([*start, n], max_tokens=8, seed=n) for n in range(3)]
    _, first = desk.add(requests[0])
    desk.step()
    others = [desk.add(request)[1] for request in requests[1:]]
    desk.step()
    assert desk.passes.running == 3, "without sharing there is room for one"
    while desk.passes.busy:
        desk.step()
    assert [listener.steps[0].cached for listener in (first, *others)] == [0, 64, 64]
    for request, listener in zip(requests, (first, *others), strict=True):
        assert listener.tokens == _expected(model, request)


def test_an_answer_that_goes_on_elsewhere_counts_its_prompt_alone(model: TinyModel) -> None:
    desk, prompt = Desk(model), random_tokens(20)
    whole, _, _ = desk.answer(make_request(prompt, max_tokens=40))
    resumed = make_request(prompt, max_tokens=40, answer=tuple(whole[:30]))
    found, count, cached = desk.answer(resumed)
    assert found == whole[30:]
    assert (count, cached) == (50 - 48 + 9, 20)


def test_rope_that_depends_on_a_prompt_s_length_shares_nothing() -> None:
    desk, request = Desk(make_model("llama-dynamic")), make_request(random_tokens(40))
    first = desk.answer(request)
    assert desk.answer(request) == first
    assert first[2] == 0


_model = cache(make_model)
TURNS = st.tuples(
    st.integers(0, 3),  # Which chat goes on, or which request is cancelled.
    st.integers(1, 20),  # Tokens that are new.
    st.integers(0, 6),  # Passes before what comes next.
    st.booleans(),  # Whether one is cancelled instead.
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.sampled_from(["llama", "mistral", "qwen3-next"]),
    st.booleans(),
    st.sampled_from([CONTEXT, 160, 512]),
    st.lists(TURNS, min_size=4, max_size=12),
)
def test_chats_that_come_and_go_are_answered_as_each_alone(
    name: str,
    guesses: bool,  # noqa: FBT001 - hypothesis gives it by place
    tokens: int,
    turns: list[tuple[int, int, int, bool]],
) -> None:
    model = _model(name)
    guesser = Lookup() if guesses else None
    desk = Desk(model, tokens=tokens, guesser=guesser, reserve_tokens=2, pass_tokens=24)
    chats = [random_tokens(24, seed=chat % 2) for chat in range(4)]  # Two begin as two others do.
    asked: list[tuple[TokenRequest, ActiveRequest, Listener]] = []
    for chat, new, passes, cancels in turns:
        if cancels and asked:
            desk.passes.cancel(asked[chat % len(asked)][1])
        else:
            chats[chat] = [*chats[chat], *random_tokens(new, seed=new)][:100]
            request = make_request(chats[chat], max_tokens=14, seed=chat, temperature=chat % 2)
            asked.append((request, *desk.add(request)))
        for _ in range(passes):
            desk.step()
        for request, _, listener in asked:
            if listener.over.is_set() and len(chats[chat]) < 80:
                chats[chat] = [*request.prompt, *listener.tokens]
    while desk.passes.busy:
        desk.step()
    for request, _, listener in asked:
        expected = _expected(model, request)
        if listener.last.finish is Finish.CANCELLED:
            assert listener.tokens == expected[: len(listener.tokens)]
        else:
            assert listener.tokens == expected
    books, states = desk.memory.books, desk.memory.books.states
    assert (books.pages_free, books.slots_free) == (-(-tokens // PAGE), 3)
    assert states is None or len(list(iter(states.take, None))) == 8, "free, or with a name"
