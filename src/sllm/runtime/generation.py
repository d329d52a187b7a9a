"""Generate one answer: the prompt in chunks, then token by token.

What a request is after any token is its ids: generating with the ids so far as `answer` continues
as it would have gone on, wherever it was before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.sampler import Draw, choose

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sllm.core.requests import Choice
    from sllm.core.sampling import SamplingParameters
    from sllm.runtime.cache.memory import CacheMemory
    from sllm.runtime.decoder import Decoder

CHUNK_TOKENS = 512


def generate(
    decoder: Decoder,
    memory: CacheMemory,
    prompt: Sequence[int],
    parameters: SamplingParameters,
    *,
    answer: Sequence[int] = (),
    ends: Collection[int] = (),
) -> Iterator[Choice]:
    """Yield the tokens that follow a prompt and the part of the answer that is there already.

    Ends after a token of `ends`, or when the whole answer has max_tokens. The sequence in the
    cache is closed however this ends, so close the generator when it is dropped. Raises
    CacheFullError when there is no more room.
    """
    assert prompt, "a prompt has at least one token"
    done = list(answer)
    sequence = memory.open()
    try:
        waiting = [*prompt, *done]
        while len(done) < parameters.max_tokens and not (done and done[-1] in ends):
            while len(waiting) > CHUNK_TOKENS:
                chunk, waiting = waiting[:CHUNK_TOKENS], waiting[CHUNK_TOKENS:]
                piece = Piece(sequence=sequence, tokens=chunk, outputs=0)
                decoder.forward(Batch.of([piece], decoder.device), memory)
            piece = Piece(sequence=sequence, tokens=waiting)
            logits = decoder.forward(Batch.of([piece], decoder.device), memory)
            choice = choose(logits[0], Draw(parameters=parameters, prompt=prompt, answer=done))
            done.append(choice.token)
            waiting = [choice.token]
            yield choice
    finally:
        sequence.close()
