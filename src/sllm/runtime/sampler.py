"""Choose the next token: a function of logits, parameters and the tokens so far, and nothing else.

What a grammar forbids goes first. Then the order is that of Transformers, vLLM and Ollama: bias,
penalties, temperature, top-k, top-p, min-p. One random number, of the request's seed and the
token's position, then picks among what is left, in order of the ids.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm.core.errors import NumericalError
from sllm.core.philox import uniform
from sllm.core.requests import Choice
from sllm.runtime.one_thread import on_one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.sampling import SamplingParameters

_SORTED_FIRST = 1024
_SORTED_GROWTH = 16


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest of some logits, and the first token that has it."""

    logit: float
    token: int


@on_one_thread
def find_peaks(logits: torch.Tensor) -> list[Peak]:
    """Return the peak of each row (tokens, vocabulary), for one wait for the device."""
    values, tokens = logits.max(dim=-1)
    found = torch.stack((values.double(), tokens.double())).tolist()
    return [Peak(value, int(token)) for value, token in zip(*found, strict=True)]


@on_one_thread
def choose(
    logits: torch.Tensor,
    parameters: SamplingParameters,
    *,
    prompt: Sequence[int],
    answer: Sequence[int],
    allowed: torch.Tensor | None = None,
    peak: Peak | None = None,
) -> Choice:
    """Return the token that follows `prompt` and `answer`, given its logits (vocabulary,).

    allowed: a bool for each token, at least one of them true; the others are not chosen, and what
    is reported of the model's probabilities does not change. peak: of the logits, if it is known.
    Raises NumericalError for logits that are not numbers.
    """
    peak = peak or find_peaks(logits.unsqueeze(0))[0]
    _require_number(peak)
    plain = logits.float()
    masked = plain if allowed is None else plain.masked_fill(~allowed, -math.inf)
    scores = _penalise(masked, parameters, prompt, answer)
    if parameters.temperature == 0:
        token = peak.token if scores is plain else int(scores.argmax())
    else:
        position = len(prompt) + len(answer)
        token = _pick(_filter(scores, parameters), uniform(parameters.seed, position))
    return _report(logits, token, parameters.logprobs)


def report(logits: torch.Tensor, peak: Peak, token: int, count: int) -> Choice:
    """Return a token that was not chosen, with what its logits say of it and of the likeliest ones.

    Raises NumericalError for logits that are not numbers.
    """
    _require_number(peak)
    return _report(logits, token, count)


def _require_number(peak: Peak) -> None:
    if not math.isfinite(peak.logit):
        raise NumericalError(
            "the model's logits are not finite numbers: its weights are damaged, or it overflows "
            "in this dtype; compute in float32 or bfloat16"
        )


def _penalise(
    logits: torch.Tensor,
    parameters: SamplingParameters,
    prompt: Sequence[int],
    answer: Sequence[int],
) -> torch.Tensor:
    biases = {id_: bias for id_, bias in parameters.logit_bias.items() if 0 <= id_ < len(logits)}
    repeats = parameters.repeat_penalty != 1.0
    counts = bool(answer) and (parameters.presence_penalty or parameters.frequency_penalty)
    if not (biases or repeats or counts):
        return logits
    scores = logits.clone()
    for token, bias in biases.items():
        scores[token] += bias
    if repeats:
        window = parameters.repeat_window
        seen = [*prompt, *answer] if window is None else _last(prompt, answer, window)
        ids = torch.tensor(sorted(set(seen)), dtype=torch.long, device=scores.device)
        found, penalty = scores[ids], parameters.repeat_penalty
        scores[ids] = torch.where(found > 0, found / penalty, found * penalty)
    if counts:
        for token, count in Counter(answer).items():
            scores[token] -= parameters.presence_penalty + count * parameters.frequency_penalty
    return scores


def _last(prompt: Sequence[int], answer: Sequence[int], count: int) -> list[int]:
    missing = max(count - len(answer), 0)
    ours = list(answer[max(len(answer) - count, 0) :])
    return [*prompt[max(len(prompt) - missing, 0) :], *ours] if missing else ours


def _filter(scores: torch.Tensor, parameters: SamplingParameters) -> torch.Tensor:
    """Return the probabilities of all tokens in float64; those that are filtered out have none."""
    shares = torch.softmax(scores.double() / parameters.temperature, dim=-1)
    if parameters.top_k or parameters.top_p < 1:
        kept, ids = _likeliest(shares, parameters)
        shares = torch.zeros_like(shares).scatter_(0, ids, kept)
    if parameters.min_p:
        shares = torch.where(shares < parameters.min_p * shares.max(), 0.0, shares)
    return shares


def _likeliest(
    shares: torch.Tensor, parameters: SamplingParameters
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares that top-k and top-p leave, from the greatest, and their ids.

    Top-p leaves those before which the sum is too small, and mostly they are few: so a few are
    sorted, and more only where their sum is still too small.
    """
    most = min(parameters.top_k or len(shares), len(shares))
    count = most if most < len(shares) else min(_SORTED_FIRST, most)
    ordered, ids = _greatest(shares, count)
    if parameters.top_p >= 1:
        return ordered, ids
    enough = parameters.top_p * (ordered if most < len(shares) else shares).sum()
    while True:
        left = int(torch.searchsorted(ordered.cumsum(-1), enough)) + 1
        if left <= count or count == most:
            return ordered[:left], ids[:left]
        count = min(_SORTED_GROWTH * count, most)
        ordered, ids = _greatest(shares, count)


def _greatest(shares: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the greatest shares in order, of equals the lowest id first, and their ids."""
    if count == len(shares):
        return torch.sort(shares, descending=True, stable=True)
    least = torch.topk(shares, count, sorted=False).values.min()
    candidates = (~(shares < least)).nonzero().squeeze(-1)
    found, order = torch.sort(shares[candidates], descending=True, stable=True)
    return found[:count], candidates[order[:count]]


def _pick(shares: torch.Tensor, point: float) -> int:
    """Return the first token at which the sum of shares exceeds a point between 0 and 1."""
    sums = shares.cumsum(-1)
    token = int(torch.searchsorted(sums, sums[-1] * point, right=True))
    if token < len(shares):
        return token
    return int(shares.nonzero()[-1])  # The product was rounded up to the whole sum.


def _report(logits: torch.Tensor, token: int, count: int | None) -> Choice:
    if count is None:
        return Choice(token)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)
