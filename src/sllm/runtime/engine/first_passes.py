"""First passes that nobody asked for, so that the first answer finds everything loaded.

What a pass has besides products (attention, norms, drawing, the libraries of matrix products) is
loaded by its first use, and no cheaper way to find out what that is than to compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.core.sampling import SamplingParameters
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.current_device import launching_on
from sllm.runtime.peaks import Wanted, ask_tokens

if TYPE_CHECKING:
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.decoder import Decoder

PROMPT_TOKENS = 96
_WANTED = Wanted(SamplingParameters(seed=0, max_tokens=1, top_k=40), position=0)
_STEPS = 2  # Something may be recorded in the first, and played in the second.


def compute_first(decoder: Decoder, memory: CacheMemory, *, context_tokens: int) -> int:
    """Compute a prompt and steps of one sequence, as far as there is context; return how many."""
    prompt = max(min(PROMPT_TOKENS, context_tokens - _STEPS), 1)
    counts = [prompt, *[1] * min(_STEPS, context_tokens - prompt)]
    sequence = memory.open()
    try:
        with launching_on(decoder.device):
            for count in counts:
                piece = Piece(sequence=sequence, tokens=[0] * count)
                batch = Batch.of([piece], decoder.device)
                ask_tokens(decoder.forward(batch, memory), [_WANTED]).drawn  # noqa: B018 - waits
    finally:
        sequence.close()
    return len(counts)
