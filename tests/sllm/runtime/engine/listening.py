"""Listeners that keep what an engine tells them."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

from sllm.core.requests import TokenRequest
from sllm.core.sampling import SamplingParameters

if TYPE_CHECKING:
    from sllm.core.requests import Choice, Step
    from sllm.runtime.engine.token_engine import EngineTicket, TokenEngine

DEADLINE_S = 20


class Listener:
    """Keeps the steps of one request."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.begun = Event()
        self.over = Event()

    def __call__(self, step: Step) -> None:
        assert not self.over.is_set(), "nothing is told after the last step"
        self.steps.append(step)
        self.begun.set()
        if step.last:
            self.over.set()

    @property
    def choices(self) -> list[Choice]:
        """What was chosen."""
        return [choice for step in self.steps for choice in step.choices]

    @property
    def tokens(self) -> list[int]:
        """The ids that were chosen."""
        return [choice.token for choice in self.choices]

    @property
    def last(self) -> Step:
        """The last step; waits for it."""
        assert self.over.wait(DEADLINE_S), f"no last step after {len(self.steps)}"
        return self.steps[-1]


def make_request(prompt: list[int], **asked: Any) -> TokenRequest:
    """Return a request; what is not a field of it is a sampling parameter."""
    named = ("answer", "ends", "grammar", "reports_prompt")
    fields = {name: asked.pop(name) for name in named if name in asked}
    parameters = SamplingParameters(**{"seed": 3, "max_tokens": 16, **asked})
    return TokenRequest(prompt=tuple(prompt), parameters=parameters, **fields)


def listen(engine: TokenEngine, request: TokenRequest) -> tuple[Listener, EngineTicket]:
    """Submit a request; return its listener and its ticket."""
    listener = Listener()
    return listener, engine.submit(request, listener)


def answer(engine: TokenEngine, request: TokenRequest) -> list[int]:
    """Return the tokens that an engine answers with, which must be without an error."""
    listener, _ = listen(engine, request)
    assert listener.last.error is None
    return listener.tokens
