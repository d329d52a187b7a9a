"""Draw a token from each row of scores: temperature, top-k, top-p, min-p, and one random number.

Rows are computed together where that saves launches and waits, on a GPU; each row's token is what
it is alone. A row that is not numbers gives some token, and whoever asks for it looks at its peak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.sampling import SamplingParameters

_NUMBERS_MAX = 1 << 21
_SORTED_FIRST = 1024
_SORTED_GROWTH = 16


def rows_at_a_time(device: torch.device, vocabulary: int) -> int:
    """Return how many rows are drawn from together; on the CPU one, which stays in its caches."""
    return 1 if device.type == "cpu" else max(_NUMBERS_MAX // vocabulary, 1)


def draw(
    scores: torch.Tensor, parameters: Sequence[SamplingParameters], points: Sequence[float]
) -> list[int]:
    """Return a token for each row (tokens, vocabulary) of float32, all with a temperature.

    points: for each row, a number from 0 to below 1. It picks the first token, in order of the ids,
    at which the sum of what is left exceeds that part of all of it.
    """
    shares = _filter(scores, parameters)
    return _pick(shares, _column(points, shares))


def _filter(scores: torch.Tensor, parameters: Sequence[SamplingParameters]) -> torch.Tensor:
    """Return the probabilities of all tokens in float64; those that are filtered out have none."""
    doubles = scores.double()
    shares = torch.softmax(doubles / _column([p.temperature for p in parameters], doubles), dim=-1)
    if any(p.top_k or p.top_p < 1 for p in parameters):
        shares = _keep_likeliest(shares, parameters)
    if any(p.min_p for p in parameters):
        least = _column([p.min_p for p in parameters], shares) * shares.amax(dim=-1, keepdim=True)
        shares = torch.where(shares < least, 0.0, shares)
    return shares


def _keep_likeliest(shares: torch.Tensor, parameters: Sequence[SamplingParameters]) -> torch.Tensor:
    """Return the shares that top-k and top-p leave, and zeros; of equals the lowest ids stay.

    Top-p leaves those before which the sum is too small, and mostly they are few: so a few are
    sorted, and more only where their sum is still too small.
    """
    size = shares.shape[-1]
    limits = [min(p.top_k or size, size) for p in parameters]
    count = max(
        limit if limit < size else min(_SORTED_FIRST, size) if p.top_p < 1 else 1
        for limit, p in zip(limits, parameters, strict=True)
    )
    limit = _column(limits, shares).long()
    top_p = _column([p.top_p for p in parameters], shares)
    while True:
        ordered = _greatest(shares, count)
        left = _count_left(ordered, shares, limit, top_p)
        least = ordered.gather(-1, left.clamp(max=count) - 1)
        least = torch.where(left < size, least, 0.0)
        kept = shares >= least
        lacks = (left > count) & (left < size)
        ties = (least > 0) & (kept.sum(dim=-1, keepdim=True) > left)
        lacking, tied = torch.stack((lacks.any(), ties.any())).tolist()
        if not lacking:
            break
        count = min(_SORTED_GROWTH * count, size)
    if tied:
        kept = torch.where(ties, _keep_first(shares, least, left), kept)
    return torch.where(kept, shares, 0.0)


def _greatest(shares: torch.Tensor, count: int) -> torch.Tensor:
    """Return each row's greatest shares in order."""
    found = shares if count == shares.shape[-1] else torch.topk(shares, count, sorted=False).values
    return torch.sort(found, descending=True).values


def _count_left(
    ordered: torch.Tensor, shares: torch.Tensor, limit: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Return how many of each row's greatest shares are left, a column; or more than are sorted.

    ordered: the greatest ones, from the greatest. limit: how many top-k leaves.
    """
    sums = ordered.cumsum(dim=-1)
    whole = sums.gather(-1, limit.clamp(max=ordered.shape[-1]) - 1)
    whole = torch.where(limit < shares.shape[-1], whole, shares.sum(dim=-1, keepdim=True))
    found = torch.searchsorted(sums, top_p * whole) + 1
    return torch.where(top_p < 1, torch.minimum(found, limit), limit)


def _keep_first(shares: torch.Tensor, least: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Return which shares are left if of those equal to the least one only the first may stay."""
    above, equal = shares > least, shares == least
    room = left - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def _pick(shares: torch.Tensor, points: torch.Tensor) -> list[int]:
    """Return the first token of each row at which the sum of shares exceeds its point."""
    sums = shares.cumsum(dim=-1)
    found = torch.searchsorted(sums, sums[:, -1:] * points, right=True)
    tokens = [int(token) for (token,) in found.tolist()]
    for row, token in enumerate(tokens):
        if token == shares.shape[-1]:  # The product was rounded up to the whole sum.
            tokens[row] = int((shares[row] > 0).cumsum(dim=-1).argmax())
    return tokens


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).to(like.device).unsqueeze(-1)
