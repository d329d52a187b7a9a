"""ActiveRequest: a request that the engine has taken, and how far it is.

Its ids are all there is to it: what is in the cache can be computed from them again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sllm.core.errors import InvalidRequestError
from sllm.core.requests import Choice, Finish
from sllm.runtime.cache.prefix import PageChain
from sllm.runtime.engine.guesses import Pace
from sllm.runtime.peaks import Wanted
from sllm.runtime.sampler import Draw, changes, choose, report, require_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sllm.core.requests import Constraint, Step, TokenRequest
    from sllm.runtime.cache.sequence import CachedSequence
    from sllm.runtime.engine.ahead import Found
    from sllm.runtime.peaks import Peak

_ENOUGH_DRAWN = 16  # Tokens in a row that the device drew, for the next one to be likely.
_log = logging.getLogger(__name__)


class ActiveRequest:
    """One request. `number` orders requests by arrival; `ids` are its prompt and its answer.

    sequence: its place in the cache while it runs. cached: tokens of its prompt that were in the
    cache when it first ran. ended: whether its last step was told. pace: how much is guessed for
    it. chain: the names of its pages. latest: the name of the last copy of its state, if it was
    made while the answer grew. prompt: the reports of the prompt's tokens so far, if they are asked
    for.
    """

    def __init__(
        self,
        number: int,
        request: TokenRequest,
        on_step: Callable[[Step], None],
        *,
        context_tokens: int,
    ) -> None:
        self.number = number
        self.request = request
        self.ids = [*request.prompt, *request.answer]
        self.sequence: CachedSequence | None = None
        self.cached: int | None = None
        self.chain = PageChain()
        self.latest: bytes | None = None
        self.prompt: list[Choice] = [Choice(request.prompt[0])] if request.reports_prompt else []
        self.started_s: float | None = None
        self.ended = False
        self.pace = Pace()
        self._answer = list(request.answer)
        self._context_tokens = context_tokens
        self._on_step = on_step
        self._constraint: Constraint | None = None
        self._first = True
        self._drawn = 0  # Tokens in a row that the device drew.
        self._is_of_row = request.grammar is None and not changes(request.parameters)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet."""
        assert self.sequence is not None, "only what runs has a place in the cache"
        return len(self.ids) - self.sequence.length

    @property
    def unreported(self) -> int:
        """Tokens of the prompt that are still to be reported."""
        return len(self.request.prompt) - len(self.prompt) if self.prompt else 0

    @property
    def tokens_left(self) -> int:
        """How many more tokens the answer may have."""
        asked = self.request.parameters.max_tokens - len(self._answer)
        return max(min(asked, self._context_tokens - len(self.ids)), 0)

    def begin_at(self, sequence: CachedSequence) -> None:
        """Run at a place in the cache, which may have its first tokens."""
        self.sequence = sequence
        if self.cached is None:
            self.cached = min(sequence.length, len(self.request.prompt))

    def begin(self) -> None:
        """Start the grammar and show it the answer so far. Raises what the grammar raises."""
        if self.request.grammar is not None:
            self._constraint = self.request.grammar.begin()
            for token in self._answer:
                self._advance(token)

    def finish(self) -> Finish | None:
        """Return why the answer is over; None if it goes on."""
        if self._answer and self._answer[-1] in self.request.ends:
            return Finish.STOP
        if self._constraint is not None and self._constraint.finished:
            return Finish.STOP
        return None if self.tokens_left else Finish.LENGTH

    def report_prompt(self, logits: torch.Tensor, peaks: Sequence[Peak]) -> None:
        """Report the prompt's next tokens, given a row for the token before each, and its peak."""
        for row, peak in zip(logits[: self.unreported], peaks, strict=False):
            token = self.request.prompt[len(self.prompt)]
            self.prompt.append(report(row, peak, token, self.request.parameters.logprobs or 0))

    def wanted(self, later: int = 0) -> Wanted | None:
        """Return what is wanted of the row of logits after its last id, or so many ids later.

        None if its token depends on more than the row.
        """
        if not self._is_of_row:
            return None
        position = len(self.request.prompt) + len(self._answer) + later
        return Wanted(self.request.parameters, position, is_likely=self._drawn >= _ENOUGH_DRAWN)

    def plan_draws(self, guesses: Sequence[int]) -> list[Draw]:
        """Return what is asked of the rows of logits after its last id and after each guess.

        That is nothing if a grammar is asked between them.
        """
        if self._constraint is not None:
            return []
        return [self.draw_after(guesses[:count]) for count in range(len(guesses) + 1)]

    def draw_after(self, guesses: Sequence[int] = ()) -> Draw:
        """Return what is asked of the row of logits after its last id, or after some guesses."""
        answer = [*self._answer, *guesses]
        return Draw(parameters=self.request.parameters, prompt=self.request.prompt, answer=answer)

    def draw(self, found: Found, first: int, guesses: Sequence[int]) -> Iterator[Choice]:
        """Yield the tokens that a pass brought: one, and one more for each guess that was right.

        first: the row for the last id, after which there is one for each guess.
        """
        for row, guess in enumerate([*guesses, None], first):
            choice = self._choose(found, row)
            self._advance(choice.token)
            self._answer.append(choice.token)
            self.ids.append(choice.token)
            yield choice
            if choice.token != guess or self.finish() is not None:
                return

    def tell(self, step: Step) -> bool:
        """Pass a step on; return whether anybody took it. Nothing is told after the last one."""
        if self.ended:
            return False
        self.ended = step.last
        if self._first:
            step = replace(step, cached=self.cached or 0, prompt=tuple(self.prompt))
            self._first = False
        try:
            self._on_step(step)
        except Exception:  # noqa: BLE001 - a listener is not ours, and must not stop the others
            _log.exception("request %d: its listener failed, and it ends", self.number)
            self.ended = True
            return False
        return True

    def _choose(self, found: Found, row: int) -> Choice:
        """Return what a row brought; it is drawn if the token is not known yet."""
        peak, token, logprobs = (
            found.peaks[row],
            found.tokens[row],
            self.request.parameters.logprobs,
        )
        self._drawn = 0 if found.drawn[row] is None else self._drawn + 1
        if token is None:
            logits = found.logits[row]
            return choose(logits, self.draw_after(), allowed=self._allowed(logits), peak=peak)
        if logprobs is not None:
            return report(found.logits[row], peak, token, logprobs)
        require_number(peak)
        return Choice(token)

    def _advance(self, token: int) -> None:
        if self._constraint is not None and token not in self.request.ends:
            self._constraint.advance(token)

    def _allowed(self, row: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens of the vocabulary the grammar allows next, on the row's device."""
        if self._constraint is None:
            return None
        packed = torch.frombuffer(bytearray(self._constraint.allowed()), dtype=torch.uint8)
        packed = packed.to(row.device)
        shifts = torch.arange(8, dtype=torch.uint8, device=row.device)
        bits = ((packed.unsqueeze(1) >> shifts) & 1).bool().flatten()[: len(row)]
        allowed = torch.zeros(len(row), dtype=torch.bool, device=row.device)
        allowed[: len(bits)] = bits
        if not bool(allowed.any()):
            raise InvalidRequestError("format: its grammar allows no token after this answer")
        return allowed
