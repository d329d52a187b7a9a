"""A decoder layer on the CPU: attention and a gated MLP over stored rows, in three native calls.

Its floor is the bytes of its matrices over the memory's rate. What is between the products is
computed where they are, so that a small model's layer does not wait for some thirty operations to
be asked for, at microseconds each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sllm_store import native
from sllm_store.errors import InvalidRequestError
from sllm_store.products import Memory, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Span = tuple[int, int, Memory]
"""A span's first row, its tokens, and the places (int64) of all that they see: their own last."""


class DecoderLayer(Protocol):
    """A layer's attention and gated MLP, as few calls. It does not keep its memory: its owner does.

    States are float32, (tokens, hidden); heads are (tokens, heads, width). ValueError for memory of
    another size.
    """

    def begin(
        self,
        x: Memory,
        *,
        rotation: tuple[Memory, Memory],
        cache: tuple[Memory, Memory],
        written: Memory,
        query: Memory,
        threads: int,
    ) -> None:
        """Write rotated queries, and keys and values to the places `written` of the cache.

        rotation: cosines and sines of each token. cache: keys and values, (places, heads of the
        cache, width). written: int64.
        """

    def attend(
        self,
        query: Memory,
        cache: tuple[Memory, Memory],
        *,
        spans: Sequence[Span],
        mixed: Memory,
        threads: int,
    ) -> None:
        """Write what some spans attend to, in their rows."""

    def finish(self, x: Memory, mixed: Memory, threads: int) -> None:
        """Add what attention and the MLP say to x, in place."""


def decoder_layer(
    matrices: Mapping[str, Rows],
    vectors: Mapping[str, Memory],
    shape: Mapping[str, int],
    *,
    interleaved: bool,
    epsilon: float,
) -> DecoderLayer:
    """Return a layer over stored matrices; a number depends on its token alone, in every bit.

    matrices: query, key, value, output, gate, up, down. vectors, in float32: attention_norm,
    mlp_norm, and where there are some, query_norm, key_norm and biases (query_bias, say). shape:
    hidden, heads, kv_heads, width, rotated, and window, 0 for none. Raises InvalidRequestError if
    they do not fit each other.
    """
    known = {name: rows for name, rows in matrices.items() if isinstance(rows, native.StoredRows)}
    try:
        return native.DecoderLayer.of(
            known, vectors, shape, interleaved=interleaved, epsilon=epsilon
        )
    except ValueError as error:
        raise InvalidRequestError(f"these weights are no layer: {error}") from error
