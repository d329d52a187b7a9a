"""Schedule: which requests run, and what each has in the next pass. No tensors, no threads.

A request runs once there are pages for all its ids and some of its answer. When the cache is full
nevertheless, the youngest gives its pages up and waits again, with its ids; so the oldest always
gets on. Steps of decoding go first, and prompts get what is left of a pass's tokens.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.runtime.engine.reuse import Reuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm.runtime.cache.sequence import CachedSequence, PageBooks
    from sllm.runtime.engine.active import ActiveRequest


_REPORTS_MAX = 64  # Tokens of one request in a pass with a row of logits each.


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How much an engine takes on.

    context_tokens: of a prompt and its answer. parallel: requests that run at a time. waiting:
    requests beyond those. pass_tokens: of prompts, in one pass. reserve_tokens: of an answer, for
    which there must be room before a request runs.
    """

    context_tokens: int
    parallel: int = 8
    waiting: int = 512
    pass_tokens: int = 512
    reserve_tokens: int = 64

    def __post_init__(self) -> None:
        """Check what is always so."""
        assert self.context_tokens > 1
        assert self.waiting >= 0
        assert self.reserve_tokens > 0
        assert 0 < self.parallel <= self.pass_tokens, "each request gets a token in each pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a request has in a pass: its next ids, and perhaps guesses of what follows them.

    complete: whether all ids are in the cache after the pass, so that a token can be drawn.
    reports: after how many of the tokens, the last ones, the prompt goes on with one to report.
    """

    request: ActiveRequest
    sequence: CachedSequence
    tokens: tuple[int, ...]
    complete: bool
    guesses: tuple[int, ...] = ()
    reports: int = 0

    @property
    def is_step(self) -> bool:
        """Whether it is a step of decoding."""
        new = len(self.tokens) - self.sequence.again
        return self.complete and new == 1 and not self.reports

    @property
    def outputs(self) -> int:
        """Tokens after which logits are wanted, the last ones."""
        return self.reports or (1 + len(self.guesses) if self.complete else 0)


class Schedule:
    """Requests that wait and requests that run, both by arrival."""

    def __init__(self, books: PageBooks, limits: EngineLimits) -> None:
        assert books.pages_for(limits.context_tokens) <= books.pages_free, "one request always fits"
        self._books = books
        self._reuse = Reuse(books)
        self._limits = limits
        self._waiting: list[ActiveRequest] = []
        self._running: list[ActiveRequest] = []

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def requests(self) -> Iterator[ActiveRequest]:
        """Yield every request."""
        yield from [*self._running, *self._waiting]

    def add(self, request: ActiveRequest) -> None:
        """Have a request wait for its turn."""
        insort(self._waiting, request, key=_number)

    def remove(self, request: ActiveRequest, *, failed: bool = False) -> None:
        """Forget a request and free its place. What a failed one computed is used by nobody."""
        if request.sequence is None:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        if failed:
            request.sequence.forget()
        else:
            self._reuse.note(request)
        self._close(request)

    def plan(self) -> list[Share]:
        """Return what the next pass computes, with room for it in the cache; empty if no one asks.

        Requests may start to run by this, or stop.
        """
        for request in self._running:
            self._reuse.note(request)
        for request in list(self._running):
            if request.sequence is not None:
                self._grow(request)
        self._admit()
        left, shares = self._limits.pass_tokens, []
        for request in sorted(self._running, key=_is_prompt):
            if left == 0:
                break
            shares.append(_share(request, left))
            self._reuse.mark(request, len(shares[-1].tokens))
            left -= len(shares[-1].tokens)
        return shares

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._limits.parallel:
            request = self._waiting[0]
            sequence = self._reuse.open(request, self._wanted_tokens(request))
            if sequence is None:
                assert self._running, "one request always fits"
                return
            del self._waiting[0]
            request.begin_at(sequence)
            insort(self._running, request, key=_number)

    def _wanted_tokens(self, request: ActiveRequest) -> int:
        return len(request.ids) + min(request.tokens_left, self._limits.reserve_tokens)

    def _grow(self, request: ActiveRequest) -> None:
        """Make room for a request's ids, at the cost of younger ones or of its own place."""
        assert request.sequence is not None
        missing = self._books.pages_for(len(request.ids)) - len(request.sequence.pages)
        while missing > self._books.pages_free:
            youngest = self._running.pop()
            self._close(youngest)
            self.add(youngest)
            if youngest is request:
                return
        request.sequence.reserve(len(request.ids))

    def _close(self, request: ActiveRequest) -> None:
        assert request.sequence is not None
        request.sequence.close()
        request.sequence = None


def _share(request: ActiveRequest, limit: int) -> Share:
    """Return a request's next ids, up to a limit."""
    sequence = request.sequence
    assert sequence is not None
    start, reports = sequence.length, 0
    if request.unreported:
        limit = min(limit, _REPORTS_MAX)
    tokens = tuple(request.ids[start : start + limit])
    end = start + len(tokens)
    if request.unreported:
        reports = max(end - len(request.prompt) + 1, 0)
    return Share(
        request=request,
        sequence=sequence,
        tokens=tokens,
        complete=end == len(request.ids),
        reports=reports,
    )


def _is_prompt(request: ActiveRequest) -> bool:
    """Whether a request that runs has more to compute than a step of decoding."""
    assert request.sequence is not None
    return request.pending > 1 + request.sequence.again


def _number(request: ActiveRequest) -> int:
    return request.number
