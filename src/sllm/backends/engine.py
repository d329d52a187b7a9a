"""Engine: the protocol between those who own requests and what computes their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.core.requests import Step, TokenRequest
    from sllm.runtime.weights.forecast import Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine holds and does now, in bytes, tokens and requests.

    device_bytes: of `weight_bytes`, those in memory of the device that computes. forecast: where
    the others lie, and what that lets one request have; None if the engine does not say.
    """

    weight_bytes: int
    device_bytes: int
    device: str
    context_tokens: int
    running: int
    waiting: int
    tokens_per_s: float
    forecast: Forecast | None = None


class Ticket(Protocol):
    """A request that an engine has taken."""

    def cancel(self) -> None:
        """End it at once, with a last step that says so. Does nothing once it has ended."""


class Engine(Protocol):
    """Computes tokens for many requests at a time. All methods may be called from any thread."""

    @property
    def context_tokens(self) -> int:
        """Return how many tokens a prompt and its answer may have together."""

    def submit(self, request: TokenRequest, on_step: Callable[[Step], None]) -> Ticket:
        """Take a request; `on_step` is called from another thread, and must return at once.

        Raises ContextLengthError for a prompt that leaves no room for an answer, QueueFullError
        if too many wait already, and EngineClosedError.
        """

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return one vector a prompt: its last hidden states, averaged, of length one. Blocks."""

    def state(self) -> EngineState:
        """Return what it holds and does."""

    def close(self) -> None:
        """End every request with EngineClosedError, then free everything. Blocks."""
