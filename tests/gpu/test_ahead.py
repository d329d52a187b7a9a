"""Graphs that are replayed before the host has their tokens tell every request the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.engine.guesses import Lookup
from sllm.runtime.layers.recording import recorder_on
from sllm.runtime.weights.opening import open_weights
from tests.sllm.runtime.engine.stepping import (
    DAMAGED,
    SCRIPTS,
    CountingDecoder,
    Run,
    compare,
    fill_cache,
    outgrow_width,
)
from tests.sllm.runtime.tiny_models import make_model, random_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sllm.runtime.weights.stored import StoredWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoredWeights]:
    path: Path = tmp_path_factory.mktemp("model")
    make_model(request.param).theirs.save_pretrained(path)
    with open_weights(path, device="cuda") as opened:
        yield opened


def _decoders(source: StoredWeights) -> tuple[CountingDecoder, CountingDecoder]:
    """Return one that steps ahead and one that does not; both replay graphs."""
    ahead, plain = (
        CountingDecoder(source.config, source, device=DEVICE, recorder=recorder_on(DEVICE))
        for _ in range(2)
    )
    plain.foresees = False
    return ahead, plain


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_happens_every_request_is_told_the_same(
    source: StoredWeights, script: Callable[[Run], None]
) -> None:
    ahead, plain = _decoders(source)
    compare(Run.of(ahead), Run.of(plain), script)
    assert ahead.ahead > 3


@pytest.mark.parametrize("guesses", [False, True])
def test_a_cache_that_gets_full_changes_no_answer(source: StoredWeights, *, guesses: bool) -> None:
    ahead, plain = (
        Run.of(decoder, tokens=48, reserve_tokens=1, guesser=Lookup() if guesses else None)
        for decoder in _decoders(source)
    )
    compare(ahead, plain, fill_cache)
    assert ahead.decoder.ahead > 3


def test_steps_of_a_width_that_is_new_are_asked_for_ahead(source: StoredWeights) -> None:
    ahead, plain = (
        Run.of(decoder, tokens=640, context_tokens=560, reserve_tokens=1)
        for decoder in _decoders(source)
    )
    compare(ahead, plain, outgrow_width)
    assert ahead.decoder.ahead > 12


def test_sampled_steps_ahead_are_those_one_by_one(source: StoredWeights) -> None:
    def script(run: Run) -> None:
        run.add([5, 6], temperature=0.8, top_k=40, top_p=0.9, max_tokens=40)
        run.add([5, 7], temperature=1.0, min_p=0.05, max_tokens=30)
        run.add([5, 8], max_tokens=20)

    ahead, plain = _decoders(source)
    compare(Run.of(ahead), Run.of(plain), script)
    assert ahead.ahead > 2 * ahead.asked


def test_many_steps_ahead_are_those_one_by_one(source: StoredWeights) -> None:
    def script(run: Run) -> None:
        for number in range(7):
            run.add(random_tokens(1 + 3 * number, seed=number), max_tokens=47)

    ahead, plain = (Run.of(decoder, parallel=5) for decoder in _decoders(source))
    compare(ahead, plain, script)
    assert ahead.decoder.ahead > 2 * ahead.decoder.asked


def test_damaged_numbers_end_their_request_and_no_other(source: StoredWeights) -> None:
    def script(run: Run) -> None:
        run.decoder.damages = True
        run.add([5, 6])
        run.add([5, DAMAGED])
        run.step(3)

    ahead, plain = _decoders(source)
    compare(Run.of(ahead), Run.of(plain), script)
    assert ahead.ahead > 3
