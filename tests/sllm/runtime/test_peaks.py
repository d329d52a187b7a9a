"""The peaks of logits are found on the device, and waited for when they are looked at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sllm.core.sampling import SamplingParameters
from sllm.runtime import peaks
from sllm.runtime.kernels import draws
from sllm.runtime.peaks import Wanted, ask_tokens, find_peaks
from sllm.runtime.sampler import Draw, choose


def test_peaks_are_the_first_of_the_greatest_and_show_what_is_no_number() -> None:
    rows = torch.tensor([[1.0, 7.0, 7.0], [3.0, -1.0, 2.0], [1.0, math.nan, 0.0]])
    first, second, broken = find_peaks(rows)
    assert (first.logit, first.token) == (7.0, 1)
    assert (second.logit, second.token) == (3.0, 0)
    assert math.isnan(broken.logit)
    assert find_peaks(rows[:0]) == []


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _wanted(**asked: Any) -> Wanted:
    return Wanted(SamplingParameters(seed=3, max_tokens=9, **asked), position=7)


def test_pending_tokens_are_those_of_the_peaks_without_a_temperature() -> None:
    rows = torch.tensor([[1.0, 7.0], [3.0, -1.0]])
    pending = ask_tokens(rows, [_wanted(temperature=0), None])
    assert pending.tokens.tolist() == pending.brought == [1, 0]
    assert (pending.drawn, pending.is_whole) == ([1, None], False)
    assert ask_tokens(rows, [_wanted(temperature=0)] * 2).is_whole


@pytest.mark.parametrize(
    ("asked", "is_whole"),
    [
        ({}, True),
        ({"top_k": 40, "top_p": 0.9}, True),
        ({"top_p": 0.9}, False),
        ({"top_k": 65}, False),
    ],
)
def test_kernels_draw_what_the_sampler_does(
    monkeypatch: pytest.MonkeyPatch, *, asked: Any, is_whole: bool
) -> None:
    rows = 3 * torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    wanted = _wanted(**asked)
    said = Draw(parameters=wanted.parameters, prompt=[1] * 4, answer=[1] * 3)
    expected = [choose(row, said).token for row in rows]
    assert not ask_tokens(rows, [wanted] * 2).is_whole
    assert ask_tokens(rows, [wanted] * 2).drawn == [None, None]
    monkeypatch.setattr(peaks, "DRAWING_DEVICES", {DEVICE})
    monkeypatch.setattr(draws, "_PART", 64)
    pending = ask_tokens(rows.to(DEVICE), [wanted, wanted])
    assert pending.is_whole == is_whole
    assert pending.drawn == (expected if asked.get("top_k") != 65 else [None, None])
    assert pending.tokens.tolist() == pending.brought
    beside = ask_tokens(rows.to(DEVICE), [wanted, None])
    assert (beside.drawn[1], beside.is_whole) == (None, False)
    assert beside.brought[1] == beside.peaks[1].token == int(rows[1].argmax())
