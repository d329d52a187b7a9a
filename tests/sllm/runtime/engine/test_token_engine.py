"""The engine answers as the plain way does, whoever else asks, and whatever happens to others."""

from __future__ import annotations

import random
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm.core.errors import (
    ContextLengthError,
    EngineClosedError,
    InvalidRequestError,
    NumericalError,
    QueueFullError,
)
from sllm.core.requests import Finish
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.generation import generate
from tests.sllm.runtime.engine.listening import (
    DEADLINE_S,
    answer,
    listen,
    make_request,
)
from tests.sllm.runtime.tiny_models import VOCABULARY, TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm.core.requests import Constraint, Step, TokenRequest
    from sllm.runtime.weights.source import Weights, WeightSource

CONTEXT = 96
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {},
    {"top_p": 0.9, "repeat_penalty": 1.3},
    {"top_k": 12, "temperature": 0.7, "presence_penalty": 0.5},
]


@pytest.fixture(scope="module", params=["llama", "qwen3-next"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return make_model("llama")


@contextmanager
def _open(
    model: TinyModel, *, tokens: int = 512, decoder: Decoder | None = None, **limits: Any
) -> Iterator[TokenEngine]:
    """Open an engine; everything in its cache must be free afterwards."""
    chosen = EngineLimits(**{"context_tokens": CONTEXT, "parallel": 4, **limits})
    memory = model.memory(tokens=tokens, sequences=chosen.parallel)
    with TokenEngine(decoder or model.decoder, memory, chosen) as engine:
        yield engine
    assert (memory.books.pages_free, memory.books.slots_free) == (tokens // 16, chosen.parallel)


def _expected(model: TinyModel, request: TokenRequest) -> list[int]:
    """Return what the plain way answers."""
    memory = model.memory(tokens=CONTEXT, sequences=1)
    steps = generate(
        model.decoder,
        memory,
        request.prompt,
        request.parameters,
        answer=request.answer,
        ends=request.ends,
    )
    return [choice.token for choice in steps]


def _requests(count: int) -> list[TokenRequest]:
    """Return requests of many lengths and ways to sample."""
    return [
        make_request(
            random_tokens(1 + 7 * number % 41, seed=number),
            seed=number,
            max_tokens=1 + 5 * number % 30,
            **SAMPLING[number % len(SAMPLING)],
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    "limits", [{}, {"parallel": 2, "pass_tokens": 3}, {"parallel": 1}], ids=["8", "2", "1"]
)
def test_many_requests_are_answered_as_each_alone(model: TinyModel, limits: Any) -> None:
    requests = _requests(12)
    with _open(model, **limits) as engine:
        listeners = [listen(engine, request)[0] for request in requests]
        for request, listener in zip(requests, listeners, strict=True):
            assert listener.last.finish is Finish.LENGTH
            assert listener.tokens == _expected(model, request)


def test_a_full_cache_makes_requests_wait_and_changes_no_answer(model: TinyModel) -> None:
    requests = [make_request(random_tokens(9, seed=n), seed=n, max_tokens=60) for n in range(4)]
    with _open(model, tokens=CONTEXT, reserve_tokens=1) as engine:
        listeners = [listen(engine, request)[0] for request in requests]
        for request, listener in zip(requests, listeners, strict=True):
            assert listener.last.finish is Finish.LENGTH
            assert listener.tokens == _expected(model, request)


@pytest.mark.parametrize("asked", SAMPLING)
def test_an_answer_goes_on_from_its_ids_as_it_would_have(model: TinyModel, asked: Any) -> None:
    prompt = random_tokens(11)
    with _open(model) as engine:
        whole = answer(engine, make_request(prompt, **asked))
        assert len(whole) == 16
        for cut in range(17):
            request = make_request(prompt, answer=tuple(whole[:cut]), **asked)
            assert answer(engine, request) == whole[cut:]


def test_an_answer_ends_by_its_token_its_length_or_the_context(llama: TinyModel) -> None:
    prompt = random_tokens(11)
    with _open(llama) as engine:
        whole = answer(engine, make_request(prompt))
        ends = frozenset({whole[5]})
        stopped, _ = listen(engine, make_request(prompt, ends=ends))
        assert stopped.last.finish is Finish.STOP
        assert stopped.tokens == whole[: whole.index(whole[5]) + 1]
        over, _ = listen(engine, make_request(prompt, ends=ends, answer=tuple(stopped.tokens)))
        assert (over.last.finish, over.tokens) == (Finish.STOP, [])
        full, _ = listen(engine, make_request(prompt, max_tokens=1000))
        assert full.last.finish is Finish.LENGTH
        assert len(full.tokens) == CONTEXT - len(prompt)
        assert full.tokens[:16] == whole


@pytest.mark.parametrize("limits", [{}, {"pass_tokens": 7, "parallel": 2}], ids=["whole", "cut"])
def test_the_tokens_of_a_prompt_have_the_model_s_probabilities(
    model: TinyModel, limits: Any
) -> None:
    prompts = [random_tokens(count, seed=count) for count in (1, 2, 70)]
    with _open(model, tokens=CONTEXT, reserve_tokens=1, **limits) as engine:
        for prompt in prompts:
            plain = answer(engine, make_request(prompt, max_tokens=5))
            asked = make_request(prompt, max_tokens=5, logprobs=2, reports_prompt=True)
            listeners = [listen(engine, request)[0] for request in (asked, make_request(prompt))]
            assert listeners[0].last.error is listeners[1].last.error is None
            assert listeners[0].tokens == plain
            told = listeners[0].steps[0].prompt
            assert [choice.token for choice in told] == prompt
            assert not any(step.prompt for step in listeners[0].steps[1:])
            assert not listeners[1].steps[0].prompt
            expected = model.expected(prompt).log_softmax(-1)
            assert told[0].logprob is None
            for place, choice in enumerate(told[1:]):
                assert choice.logprob is not None
                assert abs(choice.logprob - float(expected[place, choice.token])) <= 1e-4
                assert [token for token, _ in choice.top] == expected[place].topk(2)[1].tolist()


def test_what_cannot_be_computed_is_refused_at_once(llama: TinyModel) -> None:
    with _open(llama) as engine:
        with pytest.raises(ContextLengthError, match="shorten it by at least 5"):
            listen(engine, make_request(random_tokens(CONTEXT + 4)))
        with pytest.raises(InvalidRequestError, match="no tokens"):
            listen(engine, make_request([]))
        for ids in ([VOCABULARY], [-1]):
            with pytest.raises(InvalidRequestError, match="token ids are between"):
                listen(engine, make_request(ids))
            with pytest.raises(InvalidRequestError, match="token ids are between"):
                listen(engine, make_request([1], answer=tuple(ids)))
        listen(engine, make_request(random_tokens(CONTEXT - 1)))[0].last  # noqa: B018


class _Gate:
    """A decoder's source whose passes wait until they may go on, and fail when told to."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.stays = source.stays
        self.reached, self.open = Event(), Event()
        self.error: Exception | None = None

    @property
    def ends(self) -> Weights:
        return self._source.ends

    def layer(self, index: int) -> Any:
        self.reached.set()
        assert self.open.wait(DEADLINE_S)
        if self.error is not None and index == 1:
            raise self.error
        return self._source.layer(index)


@pytest.fixture
def gate(llama: TinyModel) -> _Gate:
    return _Gate(llama.source)


def test_a_cancelled_request_ends_whether_it_runs_or_waits(llama: TinyModel, gate: _Gate) -> None:
    decoder = Decoder(llama.config, gate)
    with _open(llama, decoder=decoder, parallel=1) as engine:
        runs, running = listen(engine, make_request([5], max_tokens=80))
        assert gate.reached.wait(DEADLINE_S)
        waits, waiting = listen(engine, make_request([6]))
        stays, _ = listen(engine, make_request([7]))
        assert engine.load().waiting == 2
        waiting.cancel()
        running.cancel()
        gate.open.set()
        assert runs.last.finish is waits.last.finish is Finish.CANCELLED
        assert len(runs.tokens) < 80
        assert waits.tokens == []
        assert stays.last.finish is Finish.LENGTH
        running.cancel()
        assert answer(engine, make_request([7])) == stays.tokens


@pytest.mark.parametrize("waiting", [0, 2])
def test_a_full_queue_says_when_to_try_again(
    llama: TinyModel, gate: _Gate, *, waiting: int
) -> None:
    decoder = Decoder(llama.config, gate)
    with _open(llama, decoder=decoder, parallel=1, waiting=waiting) as engine:
        first, _ = listen(engine, make_request([5]))
        assert gate.reached.wait(DEADLINE_S)
        others = [listen(engine, make_request([6]))[0] for _ in range(waiting)]
        with pytest.raises(QueueFullError, match=f"{waiting} requests wait") as caught:
            listen(engine, make_request([7]))
        assert caught.value.retry_after_s >= 1
        with pytest.raises(QueueFullError):
            engine.embed([[1]])
        gate.open.set()
        assert [each.last.finish for each in [first, *others]] == [Finish.LENGTH] * (waiting + 1)
        assert len(answer(engine, make_request([7]))) == 16


def test_whoever_is_told_of_the_end_can_ask_for_the_place_that_is_free(llama: TinyModel) -> None:
    with _open(llama, parallel=1, waiting=0) as engine:
        tokens: list[int] = []
        over = Event()

        def again(step: Step) -> None:
            tokens.extend(choice.token for choice in step.choices)
            if step.last and len(tokens) < 4 * 16:
                engine.submit(make_request([7]), again)  # Refused, while the first counts as there.
            elif step.last:
                over.set()

        engine.submit(make_request([7]), again)
        assert over.wait(DEADLINE_S)
        assert tokens == 4 * tokens[:16]


def test_a_pass_that_fails_ends_its_requests_and_no_others(
    llama: TinyModel, gate: _Gate, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = Decoder(llama.config, gate)
    with _open(llama, decoder=decoder, parallel=2) as engine:
        gate.error = OSError("the disk is gone")
        hit = [listen(engine, make_request([5]))[0]]
        assert gate.reached.wait(DEADLINE_S)
        waits, _ = listen(engine, make_request([6]))
        gate.open.set()
        assert hit[0].last.error is gate.error
        assert waits.last.error is gate.error, "the next pass fails as well"
        gate.error = None
        assert answer(engine, make_request([5])) == _expected(llama, make_request([5]))
    assert "a pass over 1 requests failed" in caplog.text


def test_a_listener_that_fails_hurts_itself_alone(
    llama: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    called = []

    def fail(step: object) -> None:
        called.append(step)
        raise ZeroDivisionError

    with _open(llama, parallel=2) as engine:
        engine.submit(make_request([5]), fail)
        assert len(answer(engine, make_request([6]))) == 16
        engine.submit(make_request([5]), fail).cancel()
    assert len(called) == 2
    assert "its listener failed" in caplog.text


def test_damaged_numbers_end_one_request(llama: TinyModel) -> None:
    class Damaged(Decoder):
        def forward(self, batch: Any, memory: Any) -> torch.Tensor:
            logits = super().forward(batch, memory).clone()
            logits[batch.tokens[batch.outputs] == 77] = torch.nan
            return logits

    with _open(llama, decoder=Damaged(llama.config, llama.source)) as engine:
        good, _ = listen(engine, make_request([5], temperature=0, logit_bias={77: -100}))
        bad, _ = listen(engine, make_request([77]))
        assert isinstance(bad.last.error, NumericalError)
        assert good.last.finish is Finish.LENGTH


class _Countdown:
    """A grammar of descending ids, from one on down to zero."""

    def __init__(self, start: int) -> None:
        self.next = start

    def begin(self) -> Constraint:
        return _Countdown(self.next)

    def allowed(self) -> bytes:
        if self.next == 13:
            raise RuntimeError("13 is bad luck")
        return (1 << self.next).to_bytes(self.next // 8 + 1, "little")

    def advance(self, token: int) -> None:
        assert token == self.next
        self.next -= 1

    @property
    def finished(self) -> bool:
        return self.next < 0


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"top_k": 1}, {"logprobs": 2}])
def test_a_grammar_decides_and_ends_the_answer(llama: TinyModel, asked: Any) -> None:
    with _open(llama) as engine:
        down, _ = listen(engine, make_request([5], grammar=_Countdown(9), **asked))
        assert (down.last.finish, down.tokens) == (Finish.STOP, list(range(9, -1, -1)))
        request = make_request([5], grammar=_Countdown(9), answer=(9, 8), **asked)
        rest, _ = listen(engine, request)
        assert (rest.last.finish, rest.tokens) == (Finish.STOP, list(range(7, -1, -1)))
        request = make_request([5], grammar=_Countdown(9), ends=frozenset({4}), **asked)
        assert answer(engine, request) == [9, 8, 7, 6, 5, 4]


def test_a_grammar_that_fails_ends_its_request(llama: TinyModel) -> None:
    with _open(llama) as engine:
        unlucky, _ = listen(engine, make_request([5], grammar=_Countdown(15)))
        assert isinstance(unlucky.last.error, RuntimeError)
        assert unlucky.tokens == [15, 14]
        stuck, _ = listen(engine, make_request([5], grammar=_Countdown(VOCABULARY + 2)))
        assert isinstance(stuck.last.error, InvalidRequestError)
        wrong, _ = listen(engine, make_request([5], grammar=_Countdown(9), answer=(3,)))
        assert isinstance(wrong.last.error, AssertionError)


def test_closing_ends_everything(llama: TinyModel, gate: _Gate) -> None:
    decoder = Decoder(llama.config, gate)
    with _open(llama, decoder=decoder, parallel=1) as engine:
        listeners = [listen(engine, make_request([n]))[0] for n in range(3)]
        errors: list[Exception] = []

        def embed() -> None:
            try:
                engine.embed([[1]])
            except EngineClosedError as error:
                errors.append(error)

        assert gate.reached.wait(DEADLINE_S)
        embedding = Thread(target=embed)
        embedding.start()
        closing = Thread(target=engine.close)
        closing.start()
        gate.open.set()
        closing.join(DEADLINE_S)
        embedding.join(DEADLINE_S)
        assert all(isinstance(each.last.error, EngineClosedError) for each in listeners)
        assert len(errors) == 1
        with pytest.raises(EngineClosedError):
            listen(engine, make_request([1]))
        assert engine.load().running == 0


def test_an_embedding_is_the_average_of_the_last_hidden_states(model: TinyModel) -> None:
    prompts = [random_tokens(length, seed=length) for length in (3, 1, 20, 2, 3)]
    with _open(model, pass_tokens=5) as engine:
        vectors = engine.embed(prompts)
        with pytest.raises(InvalidRequestError):
            engine.embed([[1], []])
        assert engine.embed([]) == []
    for prompt, vector in zip(prompts, vectors, strict=True):
        with torch.inference_mode():
            states = model.theirs.model(torch.tensor([prompt])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        assert float((torch.tensor(vector) - expected).abs().max()) <= 1e-5


def test_many_threads_may_ask_and_cancel(llama: TinyModel) -> None:
    requests = _requests(8)
    expected = [_expected(llama, request) for request in requests]
    wrong: list[str] = []

    def ask(engine: TokenEngine, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(10):
            number = dice.randrange(len(requests))
            listener, ticket = listen(engine, requests[number])
            if dice.random() < 0.4:
                listener.begun.wait(dice.random() / 100)
                ticket.cancel()
            last = listener.last
            whole = last.finish is not Finish.CANCELLED
            if (
                last.error is not None
                or listener.tokens != expected[number][: len(listener.tokens)]
            ):
                wrong.append(f"{number}: {listener.steps}")
            if whole and listener.tokens != expected[number]:
                wrong.append(f"{number}: not whole: {listener.steps}")

    with _open(llama, tokens=CONTEXT, reserve_tokens=2) as engine:
        threads = [Thread(target=ask, args=(engine, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not wrong
    load = engine.load()
    assert load.tokens_per_s > 0
    assert (load.running, load.waiting) == (0, 0)
