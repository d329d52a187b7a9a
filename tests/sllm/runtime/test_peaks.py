"""The peaks of logits are found on the device, and waited for when they are looked at."""

from __future__ import annotations

import math

import torch

from sllm.runtime.peaks import ask_peaks, find_peaks


def test_peaks_are_the_first_of_the_greatest_and_show_what_is_no_number() -> None:
    rows = torch.tensor([[1.0, 7.0, 7.0], [3.0, -1.0, 2.0], [1.0, math.nan, 0.0]])
    first, second, broken = find_peaks(rows)
    assert (first.logit, first.token) == (7.0, 1)
    assert (second.logit, second.token) == (3.0, 0)
    assert math.isnan(broken.logit)
    assert find_peaks(rows[:0]) == []


def test_pending_peaks_have_the_tokens_where_the_logits_are() -> None:
    rows = torch.tensor([[1.0, 7.0], [3.0, -1.0]])
    pending = ask_peaks(rows)
    assert pending.tokens.device == rows.device
    assert pending.tokens.tolist() == [peak.token for peak in pending.all] == [1, 0]
    assert pending.all is pending.all
