"""Passes: what the engine's thread owns, the model, its cache and the requests, one pass at a time.

What goes wrong with one request ends that request; what goes wrong with a pass ends the requests
that were in it. The others go on.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from sllm.core.errors import CacheFullError, EngineClosedError
from sllm.core.requests import Finish, Step
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.drawing import rows_at_a_time
from sllm.runtime.engine.ahead import AskedPass, StepsAhead
from sllm.runtime.engine.embedding import embed
from sllm.runtime.engine.schedule import Schedule
from sllm.runtime.peaks import ask_tokens
from sllm.runtime.sampler import draw_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import torch

    from sllm.core.requests import Choice
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.decoder import Decoder
    from sllm.runtime.engine.active import ActiveRequest
    from sllm.runtime.engine.ahead import Found
    from sllm.runtime.engine.guesses import Guesser
    from sllm.runtime.engine.schedule import EngineLimits, Share
    from sllm.runtime.engine.throughput import Throughput
    from sllm.runtime.peaks import Wanted
    from sllm.runtime.sampler import Draw

_log = logging.getLogger(__name__)


class Passes:
    """Requests and the computing of their tokens. Of one thread.

    on_end: is told of a request's free place, before its client is and can ask for another.
    """

    def __init__(
        self,
        decoder: Decoder,
        memory: CacheMemory,
        limits: EngineLimits,
        *,
        throughput: Throughput,
        clock: Callable[[], float],
        guesser: Guesser | None,
    ) -> None:
        self._decoder = decoder
        self._memory = memory
        self._pass_tokens = limits.pass_tokens
        self._schedule = Schedule(memory.books, limits)
        self._throughput = throughput
        self._clock = clock
        self._guesser = guesser
        self._ahead = StepsAhead(decoder, memory)
        self.on_end: Callable[[Passes], None] | None = None
        self._closed = False

    @property
    def running(self) -> int:
        """How many requests run."""
        return self._schedule.running

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._schedule.waiting

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return self.running + self.waiting > 0

    def add(self, request: ActiveRequest) -> None:
        """Take a request, or tell it at once why it is over."""
        if self._closed:
            request.tell(Step(error=_closed_error()))
            return
        try:
            request.begin()
        except Exception as error:  # noqa: BLE001 - a grammar is not ours, and its request is told
            request.tell(Step(error=error))
            return
        finish = request.finish()
        if finish is None:
            self._schedule.add(request)
        else:
            request.tell(Step(finish=finish))

    def cancel(self, request: ActiveRequest) -> None:
        """End a request and free its place; one that has ended stays as it is."""
        if not request.ended:
            self._end(request, Step(finish=Finish.CANCELLED))

    def embed(self, prompts: Sequence[Sequence[int]], vectors: Future[list[list[float]]]) -> None:
        """Compute embeddings, or tell what went wrong."""
        try:
            if self._closed:
                raise _closed_error()
            vectors.set_result(embed(self._decoder, prompts, pass_tokens=self._pass_tokens))
        except Exception as error:  # noqa: BLE001 - whoever waits for the vectors is told
            vectors.set_exception(error)

    def plan(self) -> list[Share]:
        """Return what the next pass computes; empty if nothing is asked."""
        return self._schedule.plan()

    def compute(self, shares: list[Share]) -> None:
        """Compute one pass, and tell each request what it brought.

        That of its shares which was asked for ahead is a pass of its own, and the rest is left.
        """
        if not shares:
            self._ahead.drop()
            return
        ahead = self._ahead.take(shares)
        told = shares if ahead is None else ahead.shares
        self._note_starts(told)
        try:
            asked = self._ask(shares) if ahead is None else ahead
            if len(told) == len(shares) and self._goes_on(asked):
                self._ahead.ask(asked)
            found = asked.wait()
            found = self._draw_each(asked.shares, found)
        except Exception as error:  # noqa: BLE001 - whoever was in the pass is told
            _log.exception("a pass over %d requests failed, and they end", len(told))
            for share in told:
                self._end(share.request, Step(error=error))
            self._ahead.drop()
            return
        tokens, first = 0, 0
        for share in [share for share in asked.shares if share.outputs]:
            tokens += self._take(share, found, first)
            first += share.outputs
        self._throughput.note_pass(tokens, now_s=self._clock())
        if not self.running:
            self._ahead.drop()

    def close(self) -> None:
        """End every request. What comes afterwards is told that it comes too late."""
        self._closed = True
        self._ahead.drop()
        for request in self._schedule.requests():
            self._end(request, Step(error=_closed_error()))

    def _ask(self, shares: list[Share]) -> AskedPass:
        """Ask the device for a pass."""
        shares = self._with_guesses(shares)
        logits = self._forward(shares)
        wanted = [one for share in shares for one in _wanted(share)]
        return AskedPass(shares, logits, ask_tokens(logits, wanted))

    def _goes_on(self, asked: AskedPass) -> bool:
        """Whether the next pass can be foreseen. Where there are guesses, they come first."""
        return self._ahead.may_follow(asked) and not any(self._guess(asked.shares).values())

    def _forward(self, shares: list[Share]) -> torch.Tensor:
        pieces = [
            Piece(
                sequence=share.sequence,
                tokens=(*share.tokens, *share.guesses),
                outputs=share.outputs,
            )
            for share in shares
        ]
        self._memory.copy_states()
        return self._decoder.forward(Batch.of(pieces, self._decoder.device), self._memory)

    def _with_guesses(self, shares: list[Share]) -> list[Share]:
        """Return the shares with guesses for those that decode, as far as there is room."""
        guessed = self._guess(shares)
        return [_add_guesses(share, guessed.get(place, [])) for place, share in enumerate(shares)]

    def _guess(self, shares: Sequence[Share]) -> dict[int, list[int]]:
        """Return guesses for the shares that decode, by their places."""
        if self._guesser is None:
            return {}
        left = self._pass_tokens - sum(len(share.tokens) for share in shares)
        counts: dict[int, int] = {}
        for place, share in enumerate(shares):
            pace, most = share.request.pace.count(len(share.request.ids)), left
            if share.is_step and (count := min(pace, most, share.request.tokens_left - 1)) > 0:
                counts[place] = count
                left -= count
        found = self._guesser.guess([shares[place].request for place in counts], [*counts.values()])
        return dict(zip(counts, found, strict=True))

    def _draw_each(self, shares: list[Share], found: Found) -> Found:
        """Return what a pass brought with all tokens that are drawn together.

        One row at a time is drawn once all before it are known, and so only where guesses hold.
        """
        logits, drawn = found.logits, found.drawn
        if None not in drawn or rows_at_a_time(logits.device, logits.shape[-1]) == 1:
            return found
        asked: list[Draw | None] = []
        for share in shares:
            plan = share.request.plan_draws(share.guesses) if share.complete else []
            asked += [None] * (share.outputs - len(plan))
            asked += plan
        return replace(found, tokens=draw_rest(logits, asked, found.peaks, drawn))

    def _take(self, share: Share, found: Found, first: int) -> int:
        """Tell a request what its rows brought, from `first` on; return how many tokens it is."""
        request = share.request
        choices: list[Choice] = []
        finish, error = None, None
        try:
            if share.reports:
                reported = slice(first, first + share.reports)
                request.report_prompt(found.logits[reported], found.peaks[reported])
            if share.complete:
                last = first + share.outputs - 1 - len(share.guesses)
                # What comes before an error stays.
                choices.extend(request.draw(found, last, share.guesses))
                share.sequence.settle(len(request.ids) - 1)
                finish = request.finish()
        except Exception as raised:  # noqa: BLE001 - one request's trouble, and it is told
            error = raised
        if finish is not None or error is not None:
            self._end(request, Step(choices=tuple(choices), finish=finish, error=error))
        elif choices and not request.tell(Step(choices=tuple(choices))):
            self._schedule.remove(request)
        if share.guesses:
            request.pace.note(
                guessed=len(share.guesses), right=len(choices) - 1, length=len(request.ids)
            )
        return len(choices)

    def _end(self, request: ActiveRequest, step: Step) -> None:
        """Free a request's place, then tell it its last step."""
        self._schedule.remove(request, failed=step.error is not None)
        if request.started_s is not None:
            self._throughput.note_request(self._clock() - request.started_s)
        if self.on_end is not None:
            self.on_end(self)
        request.tell(step)

    def _note_starts(self, shares: list[Share]) -> None:
        now_s = self._clock()
        for share in shares:
            if share.request.started_s is None:
                share.request.started_s = now_s


def _wanted(share: Share) -> list[Wanted | None]:
    """Return what is wanted of each row of a share, if the token depends on the row alone."""
    count = 1 + len(share.guesses) if share.complete else 0
    reported: list[Wanted | None] = [None] * (share.outputs - count)
    return reported + [share.request.wanted(later) for later in range(count)]


def _add_guesses(share: Share, guesses: list[int]) -> Share:
    """Return a share with guesses; without them, if the cache has no room."""
    if not guesses:
        return share
    try:
        share.sequence.reserve(len(share.request.ids) + len(guesses))
    except CacheFullError:
        return share
    if not share.sequence.can_take_back(len(share.request.ids)):
        return share
    return replace(share, guesses=tuple(guesses))


def _closed_error() -> EngineClosedError:
    return EngineClosedError("the model was unloaded before the answer was whole; ask again")
