"""A checkpoint opens as an engine, with a cache that fits, and answers as the model does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.backends.cache_plan import plan_cache
from sllm.backends.local import EngineOptions, open_engine
from sllm.core.errors import (
    ContextLengthError,
    EngineClosedError,
    InvalidRequestError,
    UnsupportedModelError,
)
from sllm.core.requests import Finish
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.weights.model_groups import ModelGroups
from tests.sllm.runtime.engine.listening import Listener, make_request
from tests.sllm.runtime.tiny_models import make_model, random_tokens

WEIGHTS = 90_000
GOLDEN = json.loads((Path(__file__).parents[2] / "golden/smollm2/greedy.json").read_text())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model("llama").theirs.save_pretrained(tmp_path)
    return tmp_path


def _budget(path: Path, *, context_tokens: int) -> int:
    """Return a budget that a cache fits in, and some of the weights."""
    return (
        WEIGHTS
        + plan_cache(
            [ModelGroups.open(path).config],
            device=torch.device("cpu"),
            dtype=torch.float32,
            context_tokens=context_tokens,
            limits=EngineLimits(context_tokens=2, parallel=8, pass_tokens=512),
            available_bytes=6 << 20,
        ).size_bytes
    )


def _answer(path: Path, options: EngineOptions, **asked: Any) -> list[int]:
    engine, listener = open_engine(path, options), Listener()
    engine.submit(make_request(random_tokens(5), **asked), listener)
    assert listener.last.finish is Finish.LENGTH
    engine.close()
    return listener.tokens


def test_a_published_model_answers_as_in_transformers(saved: Path) -> None:
    model = make_model("llama")
    prompt = torch.tensor([random_tokens(5)])
    asked = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None}
    generated = model.theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    expected = generated[0, 5:].tolist()
    assert _answer(saved, EngineOptions(), temperature=0) == expected
    options = EngineOptions(context_tokens=64, host_budget_bytes=_budget(saved, context_tokens=64))
    assert _answer(saved, options, temperature=0) == expected


@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
def test_the_next_turn_of_a_chat_begins_with_what_was_computed(tmp_path: Path, name: str) -> None:
    make_model(name).theirs.save_pretrained(tmp_path)
    said = random_tokens(40)
    turns: list[Listener] = []
    engine = open_engine(tmp_path, EngineOptions(context_tokens=128))
    for _ in range(2):
        turns.append(Listener())
        engine.submit(make_request(said, max_tokens=30, temperature=0), turns[-1])
        assert turns[-1].last.finish is Finish.LENGTH
        said = [*said, *turns[-1].tokens, 7]
    engine.close()
    assert turns[0].steps[0].cached == 0
    assert turns[1].steps[0].cached >= 32, "at least the prompt's pages"
    alone = Listener()
    engine = open_engine(tmp_path, EngineOptions(context_tokens=128, speculate=False))
    prompt = said[: 40 + 30 + 1]
    engine.submit(make_request(prompt, max_tokens=30, temperature=0), alone)
    assert alone.last.finish is Finish.LENGTH
    engine.close()
    assert turns[1].tokens == alone.tokens
    assert alone.steps[0].cached == 0


def test_its_state_says_what_it_holds(saved: Path) -> None:
    budget = _budget(saved, context_tokens=256)
    engine = open_engine(saved, EngineOptions(context_tokens=256, device_budget_bytes=budget))
    state = engine.state()
    assert 0 < state.device_bytes <= WEIGHTS < state.weight_bytes
    assert (state.device, state.context_tokens, state.running, state.waiting) == ("cpu", 256, 0, 0)
    assert len(engine.embed([[1, 2]])[0]) == 32
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.embed([[1]])


def test_a_context_is_the_model_s_or_shorter(saved: Path) -> None:
    for asked, expected in ((None, 256), (100, 100), (1000, 256)):
        engine = open_engine(saved, EngineOptions(context_tokens=asked))
        assert engine.context_tokens == expected
        with pytest.raises(ContextLengthError):
            engine.submit(make_request([1] * expected), Listener())
        engine.close()


def test_a_device_that_is_not_there_is_refused(saved: Path) -> None:
    for device in ("meta", "cuda:99", "abacus"):
        with pytest.raises(InvalidRequestError, match=f"device '{device}'"):
            open_engine(saved, EngineOptions(device=device))


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"top_p": 0.9}])
def test_guesses_by_a_draft_or_by_what_came_before_change_nothing(
    saved: Path, asked: dict[str, Any]
) -> None:
    asked = {**asked, "max_tokens": 100}
    expected = _answer(saved, EngineOptions(speculate=False), **asked)
    assert _answer(saved, EngineOptions(), **asked) == expected
    assert _answer(saved, EngineOptions(draft=saved), **asked) == expected


def test_a_draft_that_cannot_be_one_is_refused(saved: Path, tmp_path: Path) -> None:
    make_model("llama", vocab_size=100).theirs.save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="same tokenizer"):
        open_engine(saved, EngineOptions(draft=tmp_path / "other"))


@pytest.mark.slow
def test_smollm2_answers_with_the_golden_ids(smollm2: Path) -> None:
    engine = open_engine(smollm2, EngineOptions(context_tokens=512))
    listeners = []
    for golden in GOLDEN:
        listener = Listener()
        asked = {"temperature": 0, "max_tokens": len(golden["answer"])}
        engine.submit(make_request(golden["prompt"], **asked), listener)
        listeners.append(listener)
    for golden, listener in zip(GOLDEN, listeners, strict=True):
        assert listener.over.wait(200)
        assert listener.tokens == golden["answer"]
    engine.close()


def test_an_engine_says_where_weights_lie_and_what_bounds_it(saved: Path, smollm2: Path) -> None:
    engine = open_engine(smollm2, EngineOptions(device="cpu", context_tokens=64))
    state = engine.state()
    engine.close()
    assert state.forecast is not None
    assert state.forecast.stored.device == state.weight_bytes == state.forecast.read_bytes
    assert state.forecast.bound == "device"
    assert state.forecast.tokens_per_s
    budget = _budget(saved, context_tokens=64)
    options = EngineOptions(device="cpu", context_tokens=64, device_budget_bytes=budget)
    streaming = open_engine(saved, options)
    state = streaming.state()
    streaming.close()
    assert state.forecast is not None
    assert state.forecast.stored.disk == state.forecast.fetched_bytes > 0
    assert state.forecast.stored.device + state.forecast.stored.disk == state.weight_bytes
    assert state.forecast.crossing_bytes == 0


def test_opening_a_model_imports_no_framework_but_pytorch(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sllm.backends.local import *; "
        f"open_engine(Path({str(saved)!r}), EngineOptions(device='cpu')).close(); "
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(ran.stdout.split())
    assert "torch" in found
    assert not found & {"transformers", "peft", "triton", "grpc", "fastapi", "torch._dynamo"}
