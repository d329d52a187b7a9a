"""Products with matrices that are stored as few bytes, on the CPU: x times rows, never unpacked.

Rows go from their bytes to sums in registers, so that a product with one token reads the stored
bytes once and writes nothing but its result: its floor is those bytes over the memory's rate. With
many tokens a few rows at a time are unpacked into the cache, once for all tokens. The arithmetic is
float32's on the numbers that the format means.

A number of a result depends on its row and its token alone, in every bit: not on the other tokens
of the call, the threads, or the processor's instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sllm_store import native
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

Memory = tuple[int, int]
"""An address, and a size in bytes. Whoever gives it keeps it alive while it is used."""

WIDTHS = 16
"""What the width of a head that attends, or of a layer's states, is a multiple of."""


class Rows(Protocol):
    """A stored matrix that multiplies. It does not keep its memory: its owner does.

    ValueError for memory of another size than the numbers take.
    """

    def multiply(self, x: Memory, tokens: int, out: Memory, threads: int) -> None:
        """Write x times the transpose: float32 (tokens, rows) from float32 (tokens, columns)."""

    def decode(self, rows: Memory, out: Memory) -> None:
        """Write some rows as float32; `rows` are their numbers, as int64."""


def instruction_sets() -> list[str]:
    """Return the ways to multiply that this processor has, the fastest first."""
    return native.instruction_sets()


def attend(
    query: Memory,
    cache: tuple[Memory, Memory],
    places: Memory,
    *,
    shape: tuple[int, int, int],
    out: Memory,
    threads: int,
) -> None:
    """Write one token's softmax attention, in float32, over some places of a cache.

    cache: keys and values, (places, heads of the cache, width) each, read where they are. places:
    int64. shape: heads, heads of the cache, width; WIDTHS divides a width. out: as query, (heads,
    width). ValueError for what does not fit.
    """
    native.attend(query, cache, places, shape, out, threads)


def stored_rows(
    scheme: str, data: Memory, *, rows: int, columns: int, instructions: str = ""
) -> Rows:
    """Return a matrix of GGUF's blocks, Q4_0 to Q8_0 and Q4_K to Q6_K, or of 16-bit floats.

    instructions: one of `instruction_sets`; the fastest unless told. Raises InvalidRequestError
    if the bytes are no such matrix.
    """
    try:
        return native.StoredRows.of(
            scheme, rows=rows, columns=columns, data=data, instructions=instructions
        )
    except ValueError as error:
        raise InvalidRequestError(f"these bytes cannot be multiplied by: {error}") from error


def affine_rows(
    memories: Sequence[Memory],
    *,
    rows: int,
    columns: int,
    group: int,
    scale_type: str,
    instructions: str = "",
) -> Rows:
    """Return a matrix of MLX's four bits: words, scales and biases, a scale for each group.

    Raises InvalidRequestError if they are no such matrix.
    """
    try:
        return native.StoredRows.of_affine(
            rows=rows,
            columns=columns,
            group=group,
            scale_type=scale_type,
            memories=memories,
            instructions=instructions,
        )
    except ValueError as error:
        raise InvalidRequestError(f"these bytes cannot be multiplied by: {error}") from error
