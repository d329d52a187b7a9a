"""Choose the next token: a function of logits, parameters and the tokens so far, and nothing else.

What a grammar forbids goes first. Then the order is that of Transformers, vLLM and Ollama: bias,
penalties, temperature, top-k, top-p, min-p. One random number, of the request's seed and the
token's position, then picks among what is left, in order of the ids. On a GPU the rows of a pass
are drawn from together.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from sllm.core.errors import NumericalError
from sllm.core.philox import uniform
from sllm.core.requests import Choice
from sllm.runtime.drawing import draw, rows_at_a_time
from sllm.runtime.one_thread import on_one_thread
from sllm.runtime.peaks import Peak, find_peaks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sllm.core.sampling import SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What is asked of a row of logits: a token that follows a prompt and what is answered."""

    parameters: SamplingParameters
    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def position(self) -> int:
        """Return the token's place."""
        return len(self.prompt) + len(self.answer)


@on_one_thread
def draw_each(
    logits: torch.Tensor, draws: Sequence[Draw | None], peaks: Sequence[Peak]
) -> list[int]:
    """Return a token for each row (tokens, vocabulary): its peak's, or what is drawn.

    What is no number in one row makes no difference to another's; `report` refuses it.
    """
    tokens = [peak.token for peak in peaks]
    warm: dict[int, Draw] = {}
    cold: dict[int, Draw] = {}
    for row, one in enumerate(draws):
        if one is not None and one.parameters.temperature:
            warm[row] = one
        elif one is not None and changes(one.parameters):
            cold[row] = one
    count = rows_at_a_time(logits.device, logits.shape[-1])
    for asked in (*_parted(warm, count), *_parted(cold, count)):
        found = _draw_together(logits[[*asked]], [*asked.values()])
        for row, token in zip(asked, found, strict=True):
            tokens[row] = token
    return tokens


def draw_rest(
    logits: torch.Tensor,
    draws: Sequence[Draw | None],
    peaks: Sequence[Peak],
    drawn: Sequence[int | None],
) -> list[int | None]:
    """Return the token of each row that is drawn already, or what is asked of it; None for neither.

    drawn: tokens by row, None where none is drawn yet.
    """
    left = [one if token is None else None for one, token in zip(draws, drawn, strict=True)]
    tokens = draw_each(logits, left, peaks)
    return [
        known if one is None else token
        for known, one, token in zip(drawn, left, tokens, strict=True)
    ]


def _parted(draws: Mapping[int, Draw], count: int) -> Iterator[dict[int, Draw]]:
    rows = iter(draws.items())
    while part := dict(islice(rows, count)):
        yield part


def _draw_together(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return a token for each row, all with a temperature or none."""
    scores = logits.float()
    _penalise(scores, draws)
    if not draws[0].parameters.temperature:
        return [int(token) for token in scores.argmax(dim=-1).tolist()]
    points = [uniform(one.parameters.seed, one.position) for one in draws]
    return draw(scores, [one.parameters for one in draws], points)


@on_one_thread
def choose(
    logits: torch.Tensor,
    asked: Draw,
    *,
    allowed: torch.Tensor | None = None,
    peak: Peak | None = None,
) -> Choice:
    """Return the token that is drawn from logits (vocabulary,).

    allowed: a bool for each token, at least one of them true; the others are not chosen, and what
    is reported of the model's probabilities does not change. peak: of the logits, if it is known.
    Raises NumericalError for logits that are not numbers.
    """
    peak = peak or find_peaks(logits.unsqueeze(0))[0]
    require_number(peak)
    row, best = logits.unsqueeze(0), peak
    if allowed is not None:
        row = row.masked_fill(~allowed, -math.inf)
        best = find_peaks(row)[0]
    (token,) = draw_each(row, [asked], [best])
    return _report(logits, token, asked.parameters.logprobs)


def report(logits: torch.Tensor, peak: Peak, token: int, count: int | None) -> Choice:
    """Return a token with what its logits say of it, and of so many of the likeliest ones.

    Raises NumericalError for logits that are not numbers.
    """
    require_number(peak)
    return _report(logits, token, count)


def require_number(peak: Peak) -> None:
    """Raise NumericalError for the peak of logits that are not numbers."""
    if not math.isfinite(peak.logit):
        raise NumericalError(
            "the model's logits are not finite numbers: its weights are damaged, or it overflows "
            "in this dtype; compute in float32 or bfloat16"
        )


def changes(parameters: SamplingParameters) -> bool:
    """Return whether anything is added to logits, or taken from them."""
    return bool(
        parameters.logit_bias
        or parameters.repeat_penalty != 1.0
        or parameters.presence_penalty
        or parameters.frequency_penalty
    )


def _penalise(scores: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Change scores (tokens, vocabulary) by the biases and penalties of each row's draw."""
    size, flat = scores.shape[-1], scores.view(-1)
    for find, apply in ((_biases, torch.add), (_repeats, _weaken), (_counts, torch.add)):
        found = [
            (row * size + token, value)
            for row, one in enumerate(draws)
            for token, value in find(one).items()
            if 0 <= token < size
        ]
        if found:
            places = torch.tensor([place for place, _ in found]).to(scores.device)
            values = torch.tensor([value for _, value in found]).to(scores.device)
            flat[places] = apply(flat[places], values)


def _biases(one: Draw) -> Mapping[int, float]:
    return one.parameters.logit_bias


def _repeats(one: Draw) -> Mapping[int, float]:
    """Return the penalty of repeating for each token that would be repeated."""
    penalty, window = one.parameters.repeat_penalty, one.parameters.repeat_window
    if penalty == 1.0:
        return {}
    seen = (*one.prompt, *one.answer) if window is None else _last(one.prompt, one.answer, window)
    return dict.fromkeys(seen, penalty)


def _counts(one: Draw) -> Mapping[int, float]:
    """Return what is added for each token of the answer."""
    presence, frequency = one.parameters.presence_penalty, one.parameters.frequency_penalty
    if not (presence or frequency):
        return {}
    return {token: -(presence + n * frequency) for token, n in Counter(one.answer).items()}


def _weaken(scores: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    return torch.where(scores > 0, scores / penalties, scores * penalties)


def _last(prompt: Sequence[int], answer: Sequence[int], count: int) -> list[int]:
    missing = max(count - len(answer), 0)
    ours = list(answer[max(len(answer) - count, 0) :])
    return [*prompt[max(len(prompt) - missing, 0) :], *ours] if missing else ours


def _report(logits: torch.Tensor, token: int, count: int | None) -> Choice:
    if count is None:
        return Choice(token)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)
