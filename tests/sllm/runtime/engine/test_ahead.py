"""Steps that are asked for ahead bring every request what it gets without them."""

from __future__ import annotations

import gc
import random
from threading import Thread
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest

from sllm.core.errors import NumericalError
from sllm.core.requests import Finish
from sllm.runtime import peaks
from sllm.runtime.engine.guesses import Lookup
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.kernels import draws
from sllm.runtime.layers.kernel_operations import KernelOperations
from tests.sllm.runtime.engine.listening import DEADLINE_S, listen, make_request
from tests.sllm.runtime.engine.stepping import (
    CONTEXT,
    DAMAGED,
    SCRIPTS,
    CountingDecoder,
    Run,
    compare,
    fill_cache,
    outgrow_width,
)
from tests.sllm.runtime.layers.fake_recording import FakeRecorder
from tests.sllm.runtime.tiny_models import TinyModel, make_model, random_tokens

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return make_model("llama", num_hidden_layers=1)


def _ahead(model: TinyModel, **options: Any) -> Run:
    recorder, operations = FakeRecorder(), KernelOperations()
    decoder = CountingDecoder(model.config, model.source, operations=operations, recorder=recorder)
    return Run.of(decoder, **options)


def _compare(model: TinyModel, script: Callable[[Run], object], **options: Any) -> tuple[Run, Run]:
    ahead = _ahead(model, **options)
    plain = Run.of(CountingDecoder(model.config, model.source), **options)
    compare(ahead, plain, script)
    return ahead, plain


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_happens_every_request_is_told_the_same(
    llama: TinyModel, script: Callable[[Run], None]
) -> None:
    ahead, _ = _compare(llama, script)
    assert ahead.decoder.ahead > 3


def test_all_steps_but_the_first_pass_are_asked_for_ahead(llama: TinyModel) -> None:
    ahead, plain = _compare(llama, lambda run: run.add([5, 6]))
    assert (ahead.decoder.asked, ahead.decoder.ahead) == (1, 11)
    assert plain.decoder.asked == 12
    assert [len(step.choices) for step in ahead.listeners[0].steps] == [1] * 12


def test_a_token_that_ends_an_answer_ends_it_there(llama: TinyModel) -> None:
    prompts = [random_tokens(4 + n, seed=n) for n in range(3)]
    ends: frozenset[int] = frozenset()

    def script(run: Run) -> None:
        for prompt in prompts:
            run.add(prompt, ends=ends)

    whole, _ = _compare(llama, script)
    ends = frozenset(whole.listeners[1].tokens[4:5])
    ahead, _ = _compare(llama, script)
    assert ahead.listeners[1].last.finish is Finish.STOP
    assert len(ahead.listeners[1].tokens) <= 5
    assert ahead.decoder.ahead > 5


def test_a_step_that_is_under_way_is_waited_for_by_whoever_comes(llama: TinyModel) -> None:
    run = _ahead(llama)
    run.add([5, 6])
    run.step(4)
    asked = run.decoder.asked
    run.add([5, 7])
    run.step()
    assert (run.counts, run.decoder.asked) == ([5, 0], asked)
    run.step()
    assert (run.counts, run.decoder.asked) == ([6, 1], asked + 1)


def test_a_step_that_is_under_way_counts_for_those_that_stay(llama: TinyModel) -> None:
    run = _ahead(llama)
    active = [run.add([5 + n, 6]) for n in range(3)]
    run.step(4)
    asked = run.decoder.asked
    run.passes.cancel(active[1])
    run.step()
    assert (run.counts, run.decoder.asked) == ([5, 4, 5], asked)
    run.step(2)
    assert (run.counts, run.decoder.asked) == ([7, 4, 7], asked + 1), "it begins anew"


def test_a_cache_that_gets_full_changes_no_answer(llama: TinyModel) -> None:
    ahead, _ = _compare(llama, fill_cache, tokens=48, reserve_tokens=1)
    assert ahead.decoder.ahead > 20


def test_steps_of_a_width_that_is_new_are_asked_for_ahead(llama: TinyModel) -> None:
    options = {"tokens": 640, "context_tokens": 560, "reserve_tokens": 1}
    ahead, _ = _compare(llama, outgrow_width, **options)
    assert ahead.decoder.ahead > 12


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.8, "top_k": 8}, {"repeat_penalty": 1.2}, {"logprobs": 1}]
)
def test_beside_requests_that_want_more_of_logits_nothing_is_foreseen(
    llama: TinyModel, asked: Any
) -> None:
    run = _ahead(llama)
    run.add([5, 6])
    run.add([5, 7], max_tokens=6, **asked)
    run.step(6)
    assert run.counts == [6, 6]
    assert run.decoder.ahead == 0
    run.finish()
    assert run.decoder.ahead > 0


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kernels draw, of fewer keys than a GPU is given."""
    monkeypatch.setattr(peaks, "DRAWING_DEVICES", {"cpu"})
    monkeypatch.setattr(draws, "_PART", 64)
    monkeypatch.setattr(draws, "TOP_MAX", 8)


@pytest.mark.usefixtures("drawing")
def test_where_kernels_draw_sampled_steps_are_asked_for_ahead(llama: TinyModel) -> None:
    def script(run: Run) -> None:
        run.add([5, 6], temperature=0.8, top_k=8, top_p=0.9)
        run.add([5, 7])
        run.add([5, 8], temperature=1.2, max_tokens=7)

    ahead, _ = _compare(llama, script)
    assert (ahead.decoder.asked, ahead.decoder.ahead) == (2, 10)


@pytest.mark.usefixtures("drawing")
def test_what_kernels_cannot_tell_is_drawn_and_not_foreseen(llama: TinyModel) -> None:
    def script(run: Run) -> None:
        run.add([5, 6], temperature=1.5, top_p=0.9)
        run.add([5, 8], temperature=1.5, top_k=12)

    ahead, _ = _compare(llama, script)
    assert ahead.decoder.ahead == 0


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(("top_p", "missed"), [(0.7, 0), (0.9, 1)])
def test_what_kernels_could_tell_many_times_is_foreseen_until_they_cannot(
    llama: TinyModel, top_p: float, missed: int
) -> None:
    def script(run: Run) -> None:
        run.add([5, 6], temperature=0.1, top_p=top_p, max_tokens=40, seed=1)

    ahead, _ = _compare(llama, script)
    assert ahead.decoder.asked >= 17
    assert ahead.decoder.ahead > 3
    assert ahead.decoder.asked + ahead.decoder.ahead == 40 + missed


def test_guesses_come_before_what_could_be_foreseen(llama: TinyModel) -> None:
    def script(run: Run) -> None:
        for number in range(2):
            run.add(random_tokens(5, seed=number) * 3, max_tokens=16)

    ahead, plain = _compare(llama, script, guesser=Lookup())
    assert 0 < ahead.decoder.ahead < plain.decoder.asked
    assert any(len(step.choices) > 1 for one in ahead.listeners for step in one.steps)


def test_damaged_numbers_end_their_request_and_no_other(llama: TinyModel) -> None:
    def script(run: Run) -> None:
        run.decoder.damages = True
        run.add([5, 6])
        run.add([5, DAMAGED])
        run.step(3)

    ahead, _ = _compare(llama, script)
    assert isinstance(ahead.listeners[1].last.error, NumericalError)
    assert ahead.listeners[0].last.finish is Finish.LENGTH


def test_a_failing_pass_ends_those_that_were_in_it(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = _ahead(llama)
    run.add([5, 6])
    run.step(3)
    run.add([7, 6])
    error = OSError("the device is gone")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(run.decoder, "step_ahead", fail)
        run.step(2)
    assert run.listeners[0].last.error is run.listeners[1].last.error is error
    assert "a pass over 2 requests failed" in caplog.text
    run.add([5, 6])
    run.finish()
    assert run.counts[2] == 12


@pytest.mark.parametrize("closed", [False, True])
def test_nothing_is_held_once_nobody_runs(llama: TinyModel, *, closed: bool) -> None:
    run = _ahead(llama)
    run.add([5, 6])
    run.step(3)
    if closed:
        run.passes.close()
    else:
        run.passes.cancel(run.requests[0])
        run.step()
    run.add([5, 6], ends=frozenset(range(96)))
    run.step()
    known = [ref(request) for request in run.requests]
    run.requests.clear()
    gc.collect()
    assert [one() for one in known] == [None, None]
    assert run.memory.books.slots_free == 8


def test_many_threads_may_ask_and_cancel(llama: TinyModel) -> None:
    prompts = [random_tokens(2 + 3 * number, seed=number) for number in range(5)]
    plain = Run.of(CountingDecoder(llama.config, llama.source))
    for prompt in prompts:
        plain.add(prompt, max_tokens=9)
    plain.finish()
    expected = [listener.tokens for listener in plain.listeners]
    wrong: list[str] = []

    def ask(engine: TokenEngine, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(4):
            number = dice.randrange(len(prompts))
            request = make_request(prompts[number], max_tokens=9, temperature=0)
            listener, ticket = listen(engine, request)
            if cancelled := dice.random() < 0.4:
                listener.begun.wait(DEADLINE_S)
                ticket.cancel()
            finish, count = listener.last.finish, len(listener.tokens)
            whole = count == 9 if finish is Finish.LENGTH else cancelled
            if not whole or listener.tokens != expected[number][:count]:
                wrong.append(f"{number}: {listener.steps}")

    recorder, operations = FakeRecorder(), KernelOperations()
    decoder = CountingDecoder(llama.config, llama.source, operations=operations, recorder=recorder)
    limits = EngineLimits(context_tokens=CONTEXT, parallel=3, reserve_tokens=2)
    with TokenEngine(decoder, llama.memory(tokens=CONTEXT, sequences=3), limits) as engine:
        threads = [Thread(target=ask, args=(engine, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert engine.load().running == 0
    assert not wrong
    assert decoder.ahead > 10


def test_models_that_move_states_are_asked_for_one_step_at_a_time() -> None:
    run = _ahead(make_model("qwen3-next", mlp_only_layers=list(range(8))))
    run.add([5, 6], max_tokens=4)
    run.finish()
    assert (run.decoder.ahead, run.counts) == (0, [4])
