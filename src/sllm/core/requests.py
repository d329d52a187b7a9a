"""What is asked of an engine, and what it answers: token ids, never text.

A request is its ids: whoever has the prompt, the answer so far and the parameters can have any
engine go on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sllm.core.sampling import SamplingParameters


class Finish(StrEnum):
    """Why an answer ended. STOP: by a token of `ends`, or because its grammar has no more."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token. logprob and top are the model's own, before bias, penalties and temperature.

    top: the likeliest tokens with their logarithms of probability; empty unless asked for.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What an answer may look like, a token at a time: the state of a grammar."""

    def allowed(self) -> bytes:
        """Return the tokens that may come next: a bit each, the lowest of the first byte first.

        As many bytes as the vocabulary needs; ids beyond them are not allowed.
        """

    def advance(self, token: int) -> None:
        """Take note of the token that came."""

    @property
    def finished(self) -> bool:
        """Return whether the answer is whole, and nothing may follow."""


class Grammar(Protocol):
    """What an answer has to look like; starts a constraint for each answer."""

    def begin(self) -> Constraint:
        """Return the constraint of an answer without any token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One answer that is wanted.

    answer: the part of it that is there already. ends: tokens that end it; they are reported.
    reports_prompt: whether the probabilities of the prompt's tokens are told as well.
    """

    prompt: tuple[int, ...]
    parameters: SamplingParameters
    answer: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    reports_prompt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass brought for one request: no token, one, or several guessed ones.

    finish: set with the last step of a request. error: what ended it instead. cached: tokens of
    the prompt that needed no computing, in the first step. prompt: in the first step too, the
    prompt's tokens if they are to be reported; the first one has no probability.
    """

    choices: tuple[Choice, ...] = ()
    finish: Finish | None = None
    error: Exception | None = None
    cached: int = 0
    prompt: tuple[Choice, ...] = ()

    @property
    def last(self) -> bool:
        """Return whether nothing more comes."""
        return self.finish is not None or self.error is not None
