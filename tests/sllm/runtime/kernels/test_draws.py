"""A token that kernels draw is the one that PyTorch's operations draw of the same numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm.core.sampling import SamplingParameters
from sllm.runtime.drawing import draw
from sllm.runtime.kernels import draws as drawing_kernels
from sllm.runtime.kernels.draws import draws

if TYPE_CHECKING:
    from collections.abc import Sequence

TOP_MAX = 8
ASKED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 7, "top_p": 0.9, "temperature": 0.8},
    {"top_k": 1},
    {"top_k": TOP_MAX, "min_p": 0.02},
    {"top_p": 0.5, "temperature": 0.2},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 5, "top_p": 0.7, "min_p": 0.2, "temperature": 2.0},
]


@pytest.fixture(autouse=True)
def few(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sort few keys: the interpreter takes seconds for as many as a GPU is given."""
    if device.type == "cpu":
        monkeypatch.setattr(drawing_kernels, "_PART", 64)
        monkeypatch.setattr(drawing_kernels, "TOP_MAX", TOP_MAX)


def _parameters(asked: dict[str, Any]) -> SamplingParameters:
    return SamplingParameters(seed=1, max_tokens=1, **asked)


def _draw(
    logits: torch.Tensor, asked: Sequence[SamplingParameters], points: Sequence[float]
) -> list[list[float]]:
    columns = [
        (one.temperature, one.top_k, one.top_p, one.min_p, point)
        for one, point in zip(asked, points, strict=True)
    ]
    wanted = torch.tensor(columns, dtype=torch.float64).T.contiguous()
    return draws(logits, wanted.to(logits.device)).T.tolist()


@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_that_pytorch_draws(
    width: int, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(3 * len(ASKED), width, generator=generator) * 4).to(dtype)
    asked = [_parameters(one) for one in ASKED] * 3
    points = torch.rand(len(logits), generator=generator, dtype=torch.float64).tolist()
    points[: len(ASKED)] = [0.0] * len(ASKED)
    expected = draw(logits.float(), asked, points)
    drawn = 0
    found = _draw(logits.to(device), asked, points)
    for (logit, peak, token, is_drawn), row, wanted in zip(found, logits, expected, strict=True):
        assert (logit, peak) == (float(row.max()), int(row.max(0).indices))
        assert token == (wanted if is_drawn else peak)
        drawn += int(is_drawn)
    assert drawn >= 0.8 * len(logits)


def test_of_equals_the_lowest_ids_stay(device: torch.device) -> None:
    logits = torch.zeros(4, 500, device=device)
    logits[1, 400:403] = logits[1, 7] = 30.0
    asked = [_parameters(one) for one in ({"top_k": 3}, {"top_k": 2}, {"top_k": 8}, {})]
    points = [0.99, 0.99, 0.5, 0.5]
    tokens = [token for _, _, token, _ in _draw(logits, asked, points)]
    assert tokens == [2, 400, 4, 250]


def test_what_more_tokens_share_than_are_listed_remains_to_be_drawn(device: torch.device) -> None:
    logits = torch.zeros(2, 300, device=device)
    logits[:, 70] = 1.0
    asked = [_parameters({"top_p": top_p}) for top_p in (0.9, TOP_MAX / 310)]
    (_, peak, token, is_drawn), (_, _, _, other_is_drawn) = _draw(logits, asked, [0.9, 0.9])
    assert (peak, token, is_drawn) == (70, 70, 0)
    assert other_is_drawn


def test_a_row_without_a_temperature_or_of_no_numbers_leaves_others_alone(
    device: torch.device,
) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(3)).to(device)
    logits[1, 200] = math.nan
    logits[2, 17] = math.inf
    asked = [_parameters(one) for one in ({"temperature": 0}, {"top_k": 5}, {}, {"top_k": 5})]
    points = [0.4] * 4
    found = _draw(logits, asked, points)
    assert found[0][1:] == [int(logits[0].argmax()), int(logits[0].argmax()), 1]
    assert math.isnan(found[1][0])
    assert found[2][0] == math.inf
    assert all(0 <= token < 300 for _, _, token, _ in found)
    assert found[3][2] == draw(logits[3:].cpu(), asked[3:], points[3:])[0]
