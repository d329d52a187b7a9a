"""Vectors of texts, for both APIs."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import ContextLengthError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm.gateway.host import Loaded, ModelHost

TEXTS_MAX = 2048
GROUP_TOKENS = 2048  # Computed at a time: then others get on, and a client that has gone is noted.


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What texts, or the ids of them, are to be made vectors of. dimensions: None for all."""

    model: str
    inputs: Sequence[str | Sequence[int]]
    dimensions: int | None = None
    truncate: bool = True
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One of length 1 for each text. load_s: how long the model took to be there."""

    vectors: list[list[float]]
    tokens: int
    load_s: float


async def embed(host: ModelHost, wanted: Embedding) -> Vectors:
    """Return the vectors. Raises ContextLengthError for a long text, unless it is to be cut."""
    if len(wanted.inputs) > TEXTS_MAX:
        raise InvalidRequestError(
            f"input: {len(wanted.inputs)} texts are more than the {TEXTS_MAX} of one request"
        )
    lease = await host.lease(wanted.model, keep_alive_s=wanted.keep_alive_s)
    try:
        prompts = await asyncio.to_thread(_encode, lease.loaded, wanted)
        vectors: list[list[float]] = []
        for group in _groups(prompts):
            vectors += await asyncio.to_thread(lease.loaded.engine.embed, group)
    finally:
        lease.release()
    return Vectors(
        vectors=[_shorten(vector, wanted.dimensions) for vector in vectors],
        tokens=sum(len(prompt) for prompt in prompts),
        load_s=lease.load_s,
    )


def _groups(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Yield prompts in order, in groups that are not much larger than GROUP_TOKENS."""
    group: list[list[int]] = []
    tokens = 0
    for prompt in prompts:
        group.append(prompt)
        tokens += len(prompt)
        if tokens >= GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _encode(loaded: Loaded, wanted: Embedding) -> list[list[int]]:
    limit = loaded.engine.context_tokens
    prompts = []
    for place, item in enumerate(wanted.inputs):
        if isinstance(item, str):
            ids = loaded.text.encode(item, special=True)
        else:
            ids = list(item)
            require_known(loaded, ids, field=f"input[{place}]")
        if len(ids) > limit and not wanted.truncate:
            raise ContextLengthError(
                f"input[{place}] has {len(ids)} tokens, and the context {limit}: shorten it, or "
                "let it be truncated"
            )
        if not ids:
            raise InvalidRequestError(f"input[{place}]: it is empty")
        prompts.append(ids[:limit])
    return prompts


def require_known(loaded: Loaded, ids: Sequence[int], *, field: str) -> None:
    """Raise InvalidRequestError for ids that the model has no token for."""
    table = loaded.text.token_bytes.table
    unknown = next((token for token in ids if token not in table), None)
    if unknown is not None:
        raise InvalidRequestError(f"{field}: the model has no token {unknown}")


def _shorten(vector: list[float], dimensions: int | None) -> list[float]:
    """Return the first numbers of a vector, of length 1 again."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    if dimensions < 1:
        raise InvalidRequestError(f"dimensions: {dimensions} is not at least 1")
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept)) or 1.0
    return [number / length for number in kept]
