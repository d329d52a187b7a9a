"""Choose the next token: a function of logits, parameters and the tokens so far, and nothing else.

What a grammar forbids goes first. Then the order is that of Transformers, vLLM and Ollama: bias,
penalties, temperature, top-k, top-p, min-p. One random number, of the request's seed and the
token's position, then picks among what is left, in order of the ids.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch

from sllm.core.errors import NumericalError
from sllm.core.philox import uniform
from sllm.core.requests import Choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.sampling import SamplingParameters


def choose(
    logits: torch.Tensor,
    parameters: SamplingParameters,
    *,
    prompt: Sequence[int],
    answer: Sequence[int],
    allowed: torch.Tensor | None = None,
) -> Choice:
    """Return the token that follows `prompt` and `answer`, given its logits (vocabulary,).

    allowed: a bool for each token, at least one of them true; the others are not chosen, and what
    is reported of the model's probabilities does not change. Raises NumericalError for logits that
    are not numbers.
    """
    if not bool(logits.max().isfinite()):
        raise NumericalError(
            "the model's logits are not finite numbers: its weights are damaged, or it overflows "
            "in this dtype; compute in float32 or bfloat16"
        )
    scores = logits.float()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    scores = _penalise(scores, parameters, prompt, answer)
    if parameters.temperature == 0:
        token = int(scores.argmax())
    else:
        position = len(prompt) + len(answer)
        token = _pick(_filter(scores, parameters), uniform(parameters.seed, position))
    return _report(logits, token, parameters.logprobs)


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
        ordered, ids = _ordered(shares, parameters.top_k)
        if parameters.top_p < 1:
            before = ordered.cumsum(-1) - ordered
            ordered[before >= parameters.top_p * ordered.sum()] = 0
            ordered[0] = shares[ids[0]]
        shares = torch.zeros_like(shares).scatter_(0, ids, ordered[: len(ids)])
    if parameters.min_p:
        shares = torch.where(shares < parameters.min_p * shares.max(), 0.0, shares)
    return shares


def _ordered(shares: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return shares from the greatest, of equals the lowest id first, and the ids.

    With top_k, zeros follow that many: the sum of as many numbers is rounded alike.
    """
    if not 0 < top_k < len(shares):
        return torch.sort(shares, descending=True, stable=True)
    least = torch.topk(shares, top_k, sorted=False).values.min()
    candidates = (~(shares < least)).nonzero().squeeze(-1)
    found, order = torch.sort(shares[candidates], descending=True, stable=True)
    ordered = torch.zeros_like(shares)
    ordered[:top_k] = found[:top_k]
    return ordered, candidates[order[:top_k]]


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
