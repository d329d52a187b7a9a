"""SamplingParameters: how the next token is chosen, checked once where a request comes in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm.core.errors import InvalidSamplingError
from sllm.core.philox import SEED_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

TOP_LOGPROBS_MAX = 20
BIASES_MAX = 4096
STOPS_MAX = 64
_PENALTY_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """What a request asks for. The defaults sample from the model's own distribution.

    temperature: 0 takes the likeliest token. top_k: 0 for no limit. repeat_penalty divides the
    logits above zero, and multiplies those below, of tokens among the last `repeat_window` ones
    of prompt and answer (None: all). presence_penalty and frequency_penalty are subtracted for
    tokens in the answer, once or for each time. logprobs: how many of the likeliest tokens are
    reported with the chosen one, None for no report. stop: texts that end the answer.
    """

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InvalidSamplingError for a value that makes no sense."""
        within = {
            "seed": (self.seed, 0, SEED_MAX),
            "max_tokens": (self.max_tokens, 1, math.inf),
            "temperature": (self.temperature, 0, 100),
            "top_k": (self.top_k, 0, math.inf),
            "top_p": (self.top_p, 0, 1),
            "min_p": (self.min_p, 0, 1),
            "repeat_window": (self.repeat_window or 0, 0, math.inf),
            "presence_penalty": (self.presence_penalty, -_PENALTY_MAX, _PENALTY_MAX),
            "frequency_penalty": (self.frequency_penalty, -_PENALTY_MAX, _PENALTY_MAX),
            "logprobs": (self.logprobs or 0, 0, TOP_LOGPROBS_MAX),
            "the number of logit biases": (len(self.logit_bias), 0, BIASES_MAX),
            "the number of stop texts": (len(self.stop), 0, STOPS_MAX),
        }
        for name, (value, low, high) in within.items():
            if not low <= value <= high:  # False for nan, too.
                raise InvalidSamplingError(f"{name} is {value}, not between {low} and {high}")
        if not 0 < self.repeat_penalty < math.inf:
            raise InvalidSamplingError(f"repeat_penalty is {self.repeat_penalty}, not above zero")
        if not all(math.isfinite(bias) for bias in self.logit_bias.values()):
            raise InvalidSamplingError("a logit bias is not a finite number")
        if "" in self.stop:
            raise InvalidSamplingError("a stop text is empty, and every text contains it")
