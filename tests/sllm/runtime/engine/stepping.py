"""Requests whose passes a test takes one by one, with steps that are asked for ahead or without."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.active import ActiveRequest
from sllm.runtime.engine.passes import Passes
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.throughput import Throughput
from tests.sllm.runtime.engine.listening import Listener, make_request
from tests.sllm.runtime.tiny_models import random_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sllm.core.requests import TokenRequest
    from sllm.runtime.batch import Batch
    from sllm.runtime.engine.guesses import Guesser

CONTEXT = 48
DAMAGED = 77
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
_SEQUENCES = 8


class CountingDecoder(Decoder):
    """Counts passes by how they are asked for.

    foresees: whether any may be asked for ahead. damages: whether what follows one token is.
    """

    asked = ahead = 0
    foresees = True
    damages = False

    @property
    def steps_ahead(self) -> bool:
        """Whether steps may be asked for whose tokens are on the device alone."""
        return self.foresees and super().steps_ahead

    def forward(self, batch: Batch, memory: CacheMemory) -> torch.Tensor:
        """Count it."""
        self.asked += 1
        return self._damaged(super().forward(batch, memory), batch.tokens[batch.outputs])

    def step_ahead(
        self, batch: Batch, memory: CacheMemory, tokens: torch.Tensor
    ) -> torch.Tensor | None:
        """Count it, if it is done."""
        logits = super().step_ahead(batch, memory, tokens)
        self.ahead += logits is not None
        return None if logits is None else self._damaged(logits, tokens)

    def _damaged(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if not self.damages:
            return logits
        return logits.masked_fill((tokens == DAMAGED).unsqueeze(-1), math.nan)


@dataclass
class Run:
    """Passes of one engine, and what its requests were told."""

    passes: Passes
    memory: CacheMemory
    decoder: CountingDecoder
    context_tokens: int
    requests: list[ActiveRequest] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Note how much of the cache is free."""
        self._pages = self.memory.books.pages_free

    @classmethod
    def of(
        cls,
        decoder: CountingDecoder,
        *,
        tokens: int = 512,
        context_tokens: int = CONTEXT,
        guesser: Guesser | None = None,
        **limits: Any,
    ) -> Run:
        """Return passes over a cache of so many tokens."""
        memory = CacheMemory(
            decoder.config,
            tokens=tokens,
            sequences=_SEQUENCES,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        chosen = EngineLimits(**{"context_tokens": context_tokens, "parallel": 4, **limits})
        passes = Passes(
            decoder,
            memory,
            chosen,
            throughput=Throughput(),
            clock=lambda: 0.0,
            guesser=guesser,
        )
        return cls(passes, memory, decoder, context_tokens)

    def add(self, prompt: list[int], **asked: Any) -> ActiveRequest:
        """Add a request, which is greedy if nothing else is asked."""
        request: TokenRequest = make_request(prompt, **{**GREEDY, **asked})
        self.listeners.append(Listener())
        active = ActiveRequest(
            len(self.listeners), request, self.listeners[-1], context_tokens=self.context_tokens
        )
        self.requests.append(active)
        self.passes.add(active)
        return active

    def step(self, passes: int = 1) -> None:
        """Take some passes."""
        for _ in range(passes):
            self.passes.compute(self.passes.plan())

    def finish(self) -> None:
        """Go on until nobody runs; nothing of the cache may be in use then."""
        while self.passes.busy:
            self.step()
        books = self.memory.books
        assert (books.pages_free, books.slots_free) == (self._pages, _SEQUENCES)

    @property
    def counts(self) -> list[int]:
        """How many tokens each request was told."""
        return [len(listener.tokens) for listener in self.listeners]


def compare(ahead: Run, plain: Run, script: Callable[[Run], object]) -> None:
    """Run a script with steps ahead and without; both have to tell the same."""
    for run in (ahead, plain):
        script(run)
        run.finish()
    for ours, theirs in zip(ahead.listeners, plain.listeners, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.last.finish is theirs.last.finish
        assert type(ours.last.error) is type(theirs.last.error)
    assert plain.decoder.ahead == 0


def answer_many(run: Run) -> None:
    """Have requests of many lengths answered."""
    for number in range(5):
        run.add(random_tokens(3 + 5 * number, seed=number), max_tokens=2 + 3 * number)


def join(run: Run) -> None:
    """Have a request come while another decodes."""
    run.add([5, 6])
    run.step(4)
    run.add(random_tokens(9))
    run.step()
    assert run.counts[0] == 5
    run.step()
    assert run.counts[0] == 6
    assert run.counts[1] > 0


def cancel_one(run: Run) -> None:
    """Cancel a request while it decodes beside others."""
    active = [run.add([5 + n, 6]) for n in range(3)]
    run.step(4)
    run.passes.cancel(active[1])
    run.step()
    assert run.counts == [5, 4, 5]


def cancel_all(run: Run) -> None:
    """Cancel whoever decodes, and ask for something else."""
    active = run.add([5, 6])
    run.step(4)
    run.passes.cancel(active)
    run.add([5, 6, 7])
    run.step()
    assert run.counts == [4, 1]


def fill_cache(run: Run) -> None:
    """Ask for more than a small cache has room for."""
    for number in range(4):
        run.add(random_tokens(9, seed=number), max_tokens=24)


def share_pages(run: Run) -> None:
    """Have requests begin alike, while others decode in pages that they have in common."""
    prompt = random_tokens(34)
    for count in (32, 33, 34, 34):
        run.add(prompt[:count], max_tokens=5)
        run.step(3)
    assert run.listeners[3].steps[0].cached == 32


def sample_beside(run: Run) -> None:
    """Have a request drawn for at random, and others not."""
    run.add([5, 6])
    run.add([5, 7], temperature=0.8, top_k=8, max_tokens=6)
    run.add([5, 8])


def outgrow_width(run: Run) -> None:
    """Have a sequence get more pages than a recording of 32 has room for."""
    run.add(random_tokens(505), max_tokens=16)
    run.add([5, 6])


SCRIPTS = [answer_many, join, cancel_one, cancel_all, share_pages, sample_beside]
