"""StepsAhead: the next step of decoding is asked for before the last one's tokens are known here.

Between two passes the host looks at tokens, tells them and plans, and a device would wait for it.
Where tokens depend on their rows of logits alone, the device has the next step's input first: the
step is asked for with tokens that never left the device, and the host's work is done while it runs.

What came of it counts for the requests that go on as foreseen. For one that ended, or lost its
place, it counts for nothing: what was written is beyond the end of its sequence, in pages of its
own, and whoever gets these next writes them later on the same stream before they are read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import CacheFullError
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.peaks import ask_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.cache.sequence import CachedSequence
    from sllm.runtime.decoder import Decoder
    from sllm.runtime.engine.schedule import Share
    from sllm.runtime.peaks import Peak, PendingTokens

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What a pass brought each row: logits, their peak, and the token if it is known.

    drawn: the tokens that the device drew with the peaks, None where it did not.
    """

    logits: torch.Tensor
    peaks: list[Peak]
    drawn: list[int | None]
    tokens: list[int | None]


@dataclass(frozen=True, slots=True)
class AskedPass:
    """A pass that the device was asked for, with what its logits bring.

    rows: of the logits and the tokens, those of the shares in order; None if they are all.
    """

    shares: list[Share]
    logits: torch.Tensor
    tokens: PendingTokens
    rows: list[int] | None = None

    def wait(self) -> Found:
        """Return what came of the shares, once the device has found its tokens."""
        peaks, drawn, rows = self.tokens.peaks, self.tokens.drawn, self.rows
        if rows is None:
            return Found(self.logits, peaks, drawn, drawn)
        drawn = [drawn[row] for row in rows]
        return Found(self.logits[rows], [peaks[row] for row in rows], drawn, drawn)


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """A step of some sequences, one row each, given the tokens of the pass before."""

    sequences: list[CachedSequence]
    given: PendingTokens
    logits: torch.Tensor
    tokens: PendingTokens


class StepsAhead:
    """At most one step that was asked for ahead, of one decoder over one cache."""

    def __init__(self, decoder: Decoder, memory: CacheMemory) -> None:
        self._decoder = decoder
        self._memory = memory
        self._foreseen: _Foreseen | None = None

    def may_follow(self, asked: AskedPass) -> bool:
        """Whether the device has all tokens of a pass, and some request wants one more."""
        return (
            self._decoder.steps_ahead
            and asked.rows is None
            and asked.tokens.is_whole
            and all(_is_foreseeable(share) for share in asked.shares)
            and any(share.request.tokens_left > 1 for share in asked.shares)
        )

    def ask(self, asked: AskedPass) -> None:
        """Ask for the step that follows a pass, unless there is no room for it."""
        assert self._foreseen is None, "what was asked for is taken or dropped first"
        sequences = [share.sequence for share in asked.shares]
        unknown = [Piece(sequence=sequence, tokens=(0,)) for sequence in sequences]
        try:
            batch = Batch.of(unknown, self._decoder.device)
        except CacheFullError:
            return
        logits = self._decoder.step_ahead(batch, self._memory, asked.tokens.tokens)
        if logits is not None:
            wanted = [share.request.wanted(later=1) for share in asked.shares]
            tokens = ask_tokens(logits, wanted)
            self._foreseen = _Foreseen(sequences, asked.tokens, logits, tokens)

    def take(self, shares: Sequence[Share]) -> AskedPass | None:
        """Return what was asked for of some shares, whose sequences are longer by it from now on.

        None if it is nothing. What is not in it is left for a later pass.
        """
        foreseen = self._foreseen
        if foreseen is None:
            return None
        rows = {sequence: row for row, sequence in enumerate(foreseen.sequences)}
        given = foreseen.given.brought
        found = {
            row: share
            for share in shares
            if (row := rows.get(share.sequence)) is not None and share.tokens == (given[row],)
        }
        if not found:
            self.drop()
            return None
        self._foreseen = None
        for share in found.values():
            share.sequence.length += 1
        whole = [*found] == [*rows.values()]
        return AskedPass(
            [*found.values()], foreseen.logits, foreseen.tokens, None if whole else [*found]
        )

    def drop(self) -> None:
        """Forget what was asked for, once the device no longer computes it."""
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is None:
            return
        try:
            foreseen.tokens.peaks  # noqa: B018 - weights may be let go of after this
        except Exception:  # noqa: BLE001 - nobody wants it, and whoever asks for more is told
            _log.exception("a step that nobody waits for failed")


def _is_foreseeable(share: Share) -> bool:
    """Whether a share brings one token, and nothing is told of its logits, which would be late."""
    reports = share.reports or share.request.request.parameters.logprobs is not None
    return share.outputs == 1 and not reports
