"""TokenEngine: many requests, one thread that computes, and the way between them.

The thread owns all state. Whoever submits or cancels sends it an event, which it takes up between
two passes. A pass computes the next tokens of every request that runs, so they share each byte of
weights that is read for it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING

from sllm.core.errors import (
    ContextLengthError,
    EngineClosedError,
    InvalidRequestError,
    QueueFullError,
)
from sllm.runtime.current_device import launching_on
from sllm.runtime.engine.active import ActiveRequest
from sllm.runtime.engine.passes import Passes
from sllm.runtime.engine.throughput import Throughput
from sllm.runtime.one_thread import settle_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.core.requests import Step, TokenRequest
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.decoder import Decoder
    from sllm.runtime.engine.guesses import Guesser
    from sllm.runtime.engine.schedule import EngineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What an engine does now."""

    running: int
    waiting: int
    tokens_per_s: float


class EngineTicket:
    """A request that was taken."""

    def __init__(self, post: Callable[[], None]) -> None:
        self._post = post

    def cancel(self) -> None:
        """End the request after the pass that computes, with a last step that says so.

        Does nothing once it has ended.
        """
        self._post()


class TokenEngine:
    """Computes the answers of many requests. All methods may be called from any thread.

    The decoder and the cache are its own from now on; close it, or use it as a context.
    """

    def __init__(
        self,
        decoder: Decoder,
        memory: CacheMemory,
        limits: EngineLimits,
        *,
        guesser: Guesser | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._vocabulary = decoder.config.vocabulary
        self._device = decoder.device
        self._clock = clock
        self._throughput = Throughput()
        self._woken = Condition()  # Guards what follows.
        self._events: list[Callable[[Passes], None]] = []
        self._closing = False
        self._taken = 0
        self._load = (0, 0)  # Running and waiting, when that was last looked at.
        self._coming = 0  # Requests and embeddings that came since.
        passes = Passes(
            decoder, memory, limits, throughput=self._throughput, clock=clock, guesser=guesser
        )
        passes.on_end = self._note_load
        self._thread = Thread(target=self._run, args=(passes,), name="sllm-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> TokenEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def submit(self, request: TokenRequest, on_step: Callable[[Step], None]) -> EngineTicket:
        """Take a request; its steps are told by the engine's thread, which must not be kept.

        A listener that raises is not called again, and its request ends. Raises
        ContextLengthError, InvalidRequestError, QueueFullError and EngineClosedError.
        """
        self._check(request.prompt)
        self._check_ids("answer", request.answer)
        with self._woken:
            self._enter()
            active = ActiveRequest(
                self._taken, request, on_step, context_tokens=self.limits.context_tokens
            )
            self._taken += 1
            self._events.append(lambda passes: passes.add(active))
        return EngineTicket(lambda: self._post(lambda passes: passes.cancel(active)))

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a vector of length one for each prompt, and wait for it. Raises as submit does."""
        for prompt in prompts:
            self._check(prompt)
        vectors: Future[list[list[float]]] = Future()
        with self._woken:
            self._enter()
            self._events.append(lambda passes: passes.embed(prompts, vectors))
        return vectors.result()

    def load(self) -> EngineLoad:
        """Return what it does now."""
        with self._woken:
            running, waiting = self._load
            return EngineLoad(
                running=running,
                waiting=waiting + self._coming,
                tokens_per_s=self._throughput.tokens_per_s(now_s=self._clock()),
            )

    def close(self) -> None:
        """End every request with EngineClosedError, and wait until the cache is free."""
        with self._woken:
            self._closing = True
            self._woken.notify()
        self._thread.join()

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InvalidRequestError("prompt: it has no tokens; give at least one")
        self._check_ids("prompt", prompt)
        room = self.limits.context_tokens
        if len(prompt) >= room:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, and with an answer there is room for "
                f"{room}: shorten it by at least {len(prompt) - room + 1}, or open the model with "
                "a longer context"
            )

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise InvalidRequestError(
                f"{name}: token ids are between 0 and {self._vocabulary - 1}, not "
                f"{min(ids)} to {max(ids)}"
            )

    def _enter(self) -> None:
        """Take a place in the queue, or raise. The caller has the lock, and adds an event."""
        if self._closing:
            raise EngineClosedError("the model is being unloaded")
        if sum(self._load) + self._coming >= self.limits.parallel + self.limits.waiting:
            raise QueueFullError(
                f"{self.limits.waiting} requests wait already: try again later",
                retry_after_s=self._throughput.retry_after_s(parallel=self.limits.parallel),
            )
        self._coming += 1
        self._woken.notify()

    def _post(self, event: Callable[[Passes], None]) -> None:
        with self._woken:
            if not self._closing:
                self._events.append(event)
                self._woken.notify()

    def _run(self, passes: Passes) -> None:
        settle_threads()
        try:
            with launching_on(self._device):
                while self._take_up(passes):
                    shares = passes.plan()
                    self._note_load(passes)
                    passes.compute(shares)
                    self._note_load(passes)
        finally:
            with self._woken:
                self._closing = True
                events, self._events = self._events, []
                self._load, self._coming = (0, 0), 0
            passes.close()
            for event in events:
                event(passes)

    def _take_up(self, passes: Passes) -> bool:
        """Take up what came since the last pass, and wait for it if there is nothing to do.

        Returns whether to go on.
        """
        with self._woken:
            self._woken.wait_for(lambda: self._events or self._closing or passes.busy)
            if self._closing:
                return False
            events, self._events = self._events, []
            self._load = (passes.running, passes.waiting + self._coming)
            self._coming = 0
        for event in events:
            event(passes)
        return True

    def _note_load(self, passes: Passes) -> None:
        with self._woken:
            self._load = (passes.running, passes.waiting)
