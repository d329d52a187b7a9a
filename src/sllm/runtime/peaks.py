"""Peaks, and tokens that depend on a row of logits alone: found on the device, waited for later.

A device that finds a step's tokens has the next one's input before the host does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from sllm.core.philox import uniform
from sllm.runtime.one_thread import on_one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.sampling import SamplingParameters

DRAWING_DEVICES = {"cuda"}
"""Where kernels draw."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest of some logits, and the first token that has it."""

    logit: float
    token: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A token that is wanted of a row, and depends on nothing else: what comes at a position.

    is_likely: whether kernels can likely draw it where that depends on the row.
    """

    parameters: SamplingParameters
    position: int
    is_likely: bool = False


class PendingTokens:
    """The peaks of some rows and the tokens wanted of them, which the device may still look for.

    tokens: on the device, (rows,): the wanted ones, or the peaks' where it cannot tell these.
    is_whole: whether a token of each row is wanted, and likely found.
    """

    def __init__(
        self, found: torch.Tensor, wanted: Sequence[Wanted | None], *, is_whole: bool
    ) -> None:
        """found: logits and tokens of the peaks; if some were drawn, also tokens, and where."""
        self.tokens = found[2 if len(found) > 2 else 1]
        self.is_whole = is_whole
        self._wanted = wanted
        self._host = found.to("cpu", non_blocking=True)
        self._brought: torch.cuda.Event | None = None
        if found.device.type == "cuda":
            self._brought = torch.cuda.Event()
            self._brought.record(torch.cuda.current_stream(found.device))

    @cached_property
    def peaks(self) -> list[Peak]:
        """The peak of each row; waits for what was asked for, and for nothing after it."""
        logits, tokens, *_ = self._rows
        return [Peak(logit, int(token)) for logit, token in zip(logits, tokens, strict=True)]

    @cached_property
    def brought(self) -> list[int]:
        """The tokens as they are on the device. Waits as well."""
        return [int(token) for token in self._rows[2 if len(self._rows) > 2 else 1]]

    @cached_property
    def drawn(self) -> list[int | None]:
        """The token of each row; None where none is wanted, or it remains to be drawn. Waits."""
        drawn = self._rows[3] if len(self._rows) > 2 else map(_is_peak, self._wanted)
        return [
            token if one is not None and is_drawn else None
            for one, token, is_drawn in zip(self._wanted, self.brought, drawn, strict=True)
        ]

    @cached_property
    def _rows(self) -> list[list[float]]:
        if self._brought is not None:
            self._brought.synchronize()
        rows: list[list[float]] = self._host.tolist()
        return rows


@on_one_thread
def ask_tokens(logits: torch.Tensor, wanted: Sequence[Wanted | None]) -> PendingTokens:
    """Have the device find the peak of each row (tokens, vocabulary), and the token wanted of it.

    None for a row of which no token is wanted, or one that depends on more than the row.
    """
    listed = logits.device.type in DRAWING_DEVICES
    wanted = [one if _is_peak(one) or (listed and _is_listed(one)) else None for one in wanted]
    drawn = [one for one in wanted if one is not None and not _is_peak(one)]
    found = _draw(logits, wanted) if drawn else _find(logits)
    return PendingTokens(found, wanted, is_whole=None not in wanted and all(map(_is_told, drawn)))


def find_peaks(logits: torch.Tensor) -> list[Peak]:
    """Return the peak of each row (tokens, vocabulary), for one wait for the device."""
    return ask_tokens(logits, [None] * len(logits)).peaks


def _find(logits: torch.Tensor) -> torch.Tensor:
    if logits.device.type == "cuda":
        from sllm.runtime.kernels.peaks import peaks

        return peaks(logits)
    values, tokens = logits.max(dim=-1)
    return torch.stack((values.double(), tokens.double()))


def _draw(logits: torch.Tensor, wanted: Sequence[Wanted | None]) -> torch.Tensor:
    from sllm.runtime.kernels.draws import draws

    columns = [(0.0,) * 5 if one is None else _asked(one) for one in wanted]
    pinned = logits.device.type == "cuda"
    asked = torch.tensor([*zip(*columns, strict=True)], dtype=torch.float64, pin_memory=pinned)
    return draws(logits, asked.to(logits.device, non_blocking=True))


def _asked(one: Wanted) -> tuple[float, ...]:
    asked = one.parameters
    point = uniform(asked.seed, one.position) if asked.temperature else 0.0
    return asked.temperature, asked.top_k, asked.top_p, asked.min_p, point


def _is_peak(one: Wanted | None) -> bool:
    return one is not None and not one.parameters.temperature


def _is_listed(one: Wanted | None) -> bool:
    """Whether kernels list as many tokens as top-k leaves."""
    from sllm.runtime.kernels.draws import TOP_MAX

    return one is not None and one.parameters.top_k <= TOP_MAX > 0


def _is_told(one: Wanted) -> bool:
    """Whether kernels likely tell the token: top-p alone may leave more than are listed."""
    return one.is_likely or one.parameters.top_k > 0 or one.parameters.top_p == 1
