"""Filters equal those of Transformers; ids, seed and place alone decide a draw."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sllm.core.errors import NumericalError
from sllm.core.philox import uniform
from sllm.core.sampling import SamplingParameters
from sllm.runtime import sampler
from sllm.runtime.peaks import find_peaks
from sllm.runtime.sampler import Draw, choose, draw_each

if TYPE_CHECKING:
    from sllm.core.requests import Choice

VOCABULARY = 40


def _logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCABULARY, generator=generator) * 3


def _choose(
    logits: torch.Tensor,
    prompt: list[int] | None = None,
    answer: list[int] | None = None,
    **asked: Any,
) -> Choice:
    parameters = SamplingParameters(**{"seed": 0, "max_tokens": 9, **asked})
    asked_of = Draw(parameters=parameters, prompt=prompt or [], answer=answer or [])
    return choose(logits, asked_of)


def _reachable(logits: torch.Tensor, count: int = 3000, **asked: Any) -> dict[int, int]:
    drawn: dict[int, int] = {}
    for seed in range(count):
        token = _choose(logits, seed=seed, **asked).token
        drawn[token] = drawn.get(token, 0) + 1
    return drawn


@pytest.mark.parametrize(
    ("asked", "theirs"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        (
            {"temperature": 2.0, "top_k": 12, "top_p": 0.7, "min_p": 0.2},
            [
                TemperatureLogitsWarper(2.0),
                TopKLogitsWarper(12),
                TopPLogitsWarper(0.7),
                MinPLogitsWarper(0.2),
            ],
        ),
    ],
)
def test_draws_follow_the_distribution_that_transformers_samples(
    asked: dict[str, Any], theirs: list[Any]
) -> None:
    logits, count = _logits(), 3000
    process: Any = LogitsProcessorList(theirs)
    scores = process(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())
    expected = torch.softmax(scores[0], dim=-1) * count
    drawn = _reachable(logits, count, **asked)
    assert all(expected[token] > 0 for token in drawn)
    likely = [token for token in range(VOCABULARY) if expected[token] >= 5]
    found = sum((drawn.get(t, 0) - float(expected[t])) ** 2 / float(expected[t]) for t in likely)
    assert found < 3 * len(likely) + 10


def test_without_temperature_the_likeliest_is_taken_and_the_first_of_equals() -> None:
    logits = _logits()
    assert _choose(logits, temperature=0).token == int(logits.argmax())
    assert _choose(torch.zeros(7), temperature=0).token == 0


@pytest.mark.parametrize("asked", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_the_narrowest_filters_leave_the_likeliest(asked: dict[str, Any]) -> None:
    logits = _logits()
    assert _reachable(logits, 50, **asked).keys() == {int(logits.argmax())}


def test_the_repeat_penalty_is_that_of_transformers() -> None:
    logits, prompt = _logits(3), [1, 5, 5, 9]
    process = RepetitionPenaltyLogitsProcessor(1.7)
    expected = process(torch.tensor([prompt]), logits[None].clone())[0]
    raw = torch.full((VOCABULARY,), -1e4)
    for token in (1, 5, 9, 2):
        one = torch.where(torch.arange(VOCABULARY) == token, logits, raw)
        other = torch.where(torch.arange(VOCABULARY) == token, expected, raw)
        for bias in (-0.05, 0.05):  # Found by weighing it against a token that is not penalised.
            level = float(other[token]) + bias
            one[30] = level
            chosen = _choose(one, prompt, temperature=0, repeat_penalty=1.7).token
            assert chosen == (30 if bias > 0 else token)


def test_penalties_look_where_they_say() -> None:
    logits = torch.zeros(6)
    logits[2], logits[3] = 1.0, 0.9
    greedy: dict[str, Any] = {"temperature": 0}
    assert _choose(logits, [2], [], **greedy, presence_penalty=1.0).token == 2
    assert _choose(logits, [], [2], **greedy, presence_penalty=1.0).token == 3
    assert _choose(logits, [], [2], **greedy, frequency_penalty=0.06).token == 2
    assert _choose(logits, [], [2, 2], **greedy, frequency_penalty=0.06).token == 3
    assert _choose(logits, [2], [4, 4], **greedy, repeat_penalty=2.0, repeat_window=2).token == 2
    assert _choose(logits, [2], [4, 4], **greedy, repeat_penalty=2.0, repeat_window=3).token == 3
    assert _choose(logits, [2], [4], **greedy, repeat_penalty=2.0, repeat_window=0).token == 2


def test_a_bias_forces_and_forbids() -> None:
    logits = _logits()
    assert _choose(logits, logit_bias={17: 100.0}).token == 17
    best = int(logits.argmax())
    assert best not in _reachable(logits, 200, logit_bias={best: -100.0})
    assert _choose(logits, temperature=0, logit_bias={10**6: 5.0}).token == best


def test_logprobs_are_the_model_s_own() -> None:
    logits = _logits()
    expected = torch.log_softmax(logits, dim=-1)
    found = _choose(logits, temperature=0.1, logprobs=3, logit_bias={17: 100.0})
    assert found.token == 17
    assert found.logprob == pytest.approx(float(expected[17]))
    values, ids = expected.topk(3)
    assert [id_ for id_, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist())
    assert _choose(logits, logprobs=0).top == ()
    assert _choose(logits).logprob is None


def test_a_draw_is_a_function_of_ids_seed_and_place() -> None:
    logits = _logits()
    at = {place: _choose(logits, [1] * place, seed=5).token for place in range(60)}
    assert len(set(at.values())) > 3
    for place, token in at.items():
        split = place // 2
        again = _choose(logits, [1] * split, [1] * (place - split), seed=5)
        assert again.token == token


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    logits = _logits()
    logits[3] = value
    with pytest.raises(NumericalError):
        _choose(logits)


@pytest.mark.parametrize("spread", [0.001, 0.2, 3.0])  # From flat to steep: all, many, few left.
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999999])
def test_top_p_of_a_large_vocabulary_leaves_what_sorting_all_of_it_leaves(
    spread: float, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(20_000, generator=generator) * spread).to(torch.bfloat16)  # With equals.
    for seed in range(12):
        parameters = SamplingParameters(seed=seed, max_tokens=9, top_p=top_p)
        shares = _shares_by_sorting(logits.float(), parameters, [1], [])
        sums = shares.cumsum(-1)
        expected = int((sums > uniform(seed, 1) * float(sums[-1])).nonzero()[0])
        asked = Draw(parameters=parameters, prompt=[1], answer=[])
        assert choose(logits, asked).token == expected


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 300),
    levels=st.sampled_from([1, 3, 40, 10**6]),
    asked=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.001, 0.3, 1.0, 2.0]),
            "top_k": st.integers(0, 320),
            "top_p": st.floats(0, 1),
            "min_p": st.sampled_from([0.0, 0.05, 0.9, 1.0]),
            "repeat_penalty": st.sampled_from([0.8, 1.3]),
            "repeat_window": st.integers(0, 4),
            "presence_penalty": st.floats(-2, 2),
            "frequency_penalty": st.floats(-2, 2),
            "logit_bias": st.dictionaries(st.integers(0, 400), st.floats(-50, 50), max_size=4),
        },
    ),
)
@settings(max_examples=300, deadline=None)
def test_every_draw_is_that_of_sorting_the_whole_vocabulary(
    seed: int, size: int, levels: int, asked: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (size,), generator=generator) * (8 / levels) - 4
    ids = torch.randint(0, size, (6,), generator=generator).tolist()
    kept = logits.clone()
    for draw in range(8):
        parameters = SamplingParameters(seed=seed + draw, max_tokens=9, **asked)
        shares = _shares_by_sorting(logits, parameters, ids[:3], ids[3:])
        point = uniform(parameters.seed, len(ids)) * float(shares.cumsum(-1)[-1])
        expected = int((shares.cumsum(-1) > point).nonzero()[0])
        one = Draw(parameters=parameters, prompt=ids[:3], answer=ids[3:])
        assert choose(logits, one).token == expected
    assert torch.equal(logits, kept)


def _shares_by_sorting(
    logits: torch.Tensor, parameters: SamplingParameters, prompt: list[int], answer: list[int]
) -> torch.Tensor:
    scores = logits.clone()
    for token, bias in parameters.logit_bias.items():
        if token < len(scores):
            scores[token] += bias
    window = parameters.repeat_window
    seen = [*prompt, *answer]
    for token in set(seen if window is None else seen[max(len(seen) - window, 0) :]):
        penalty = parameters.repeat_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(answer):
        scores[token] -= (
            parameters.presence_penalty + answer.count(token) * parameters.frequency_penalty
        )
    shares = torch.softmax(scores.double() / parameters.temperature, dim=-1)
    ordered, ids = torch.sort(shares, descending=True, stable=True)
    total = shares.sum()
    if 0 < parameters.top_k < len(shares):
        total = ordered.cumsum(-1)[parameters.top_k - 1]
        ordered[parameters.top_k :] = 0
    if parameters.top_p < 1:
        before = ordered.cumsum(-1).roll(1)
        before[0] = -1
        ordered[before >= parameters.top_p * total] = 0
    shares = torch.zeros_like(shares).scatter_(0, ids, ordered)
    return torch.where(shares < parameters.min_p * shares.max(), 0.0, shares)


@pytest.mark.parametrize(
    "asked", [{}, {"logit_bias": {2: 9.0}}, {"repeat_penalty": 1.5}, {"presence_penalty": 1.0}]
)
def test_a_known_peak_changes_no_choice(asked: dict[str, Any]) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    parameters = SamplingParameters(seed=1, max_tokens=5, temperature=0, **asked)
    for row, peak in zip(logits, find_peaks(logits), strict=True):
        said = (peak.token,)
        asked_of = Draw(parameters=parameters, prompt=said, answer=said)
        for allowed in (None, torch.arange(50) != peak.token):
            known, alone = (
                choose(row, asked_of, allowed=allowed, peak=given) for given in (peak, None)
            )
            assert known == alone
            assert allowed is None or known.token != peak.token


ASKED: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0, "repeat_penalty": 1.5},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1, "repeat_window": 64},
    {"top_p": 0.95},
    {"top_p": 0.999999},
    {"top_k": 7, "presence_penalty": 0.5},
    {"top_k": 3000, "top_p": 0.2, "min_p": 0.05},
    {"min_p": 0.3, "logit_bias": {5: 4.0, 10**6: 1.0}},
    {"temperature": 2.0, "frequency_penalty": -1.0},
]


@pytest.mark.parametrize("together", [1, 3, 100])
@pytest.mark.parametrize("levels", [2, 30, 10**6])  # With many equals, some, and hardly any.
def test_rows_that_are_drawn_together_bring_what_each_brings_alone(
    monkeypatch: pytest.MonkeyPatch, together: int, levels: int
) -> None:
    monkeypatch.setattr(sampler, "rows_at_a_time", lambda device, vocabulary: together)
    generator = torch.Generator().manual_seed(levels)
    size = 2500
    for turn in range(6):
        logits = torch.randint(0, levels, (len(ASKED), size), generator=generator) * (12 / levels)
        ids = torch.randint(0, size, (9,), generator=generator).tolist()
        draws = [
            Draw(
                parameters=SamplingParameters(seed=turn * 50 + row, max_tokens=9, **asked),
                prompt=ids[:4],
                answer=ids[4:],
            )
            for row, asked in enumerate(ASKED)
        ]
        kept = logits.clone()
        found = draw_each(logits, draws, find_peaks(logits))
        assert torch.equal(logits, kept)
        for row, one, token in zip(logits, draws, found, strict=True):
            assert token == choose(row, one).token
            if one.parameters.temperature:
                shares = _shares_by_sorting(row, one.parameters, ids[:4], ids[4:])
                point = uniform(one.parameters.seed, 9) * float(shares.cumsum(-1)[-1])
                assert token == int((shares.cumsum(-1) > point).nonzero()[0])


def test_a_row_that_is_no_number_leaves_the_others_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "rows_at_a_time", lambda device, vocabulary: 100)
    logits = torch.stack([_logits(seed) for seed in range(4)])
    logits[1], logits[2, 7] = math.nan, math.inf
    tried: list[dict[str, Any]] = [{}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1}]
    for asked in tried:
        parameters = SamplingParameters(seed=3, max_tokens=9, **asked)
        one = Draw(parameters=parameters, prompt=[1], answer=[])
        found = draw_each(logits, [one, one, one, None], find_peaks(logits))
        assert found[0] == choose(logits[0], one).token
        assert found[3] == int(logits[3].argmax())
        assert all(0 <= token < VOCABULARY for token in found)
