"""Which bytes of a GGUF say what it is: for whoever has only the beginning of the file so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm_store.checkpoint.fields import CutShortError, FieldError
from sllm_store.checkpoint.gguf_header import read_header
from sllm_store.convert.gguf_import import ROPE_FACTORS
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def ranges_that_describe(beginning: Path, size_bytes: int) -> list[tuple[int, int]] | None:
    """Return which (offset, size) are read besides the header to say what a GGUF is.

    beginning: a file that holds the GGUF's first bytes. size_bytes: of the whole GGUF. Returns None
    if the header goes on behind them; raises InvalidCheckpointError for one that cannot be read.
    """
    try:
        header = read_header(beginning, size_bytes, root=None)
    except CutShortError:
        return None
    except FieldError as error:
        raise InvalidCheckpointError(f"{beginning}: {error}") from None
    return [
        (tensor.offset, tensor.size_bytes)
        for tensor in header.tensors
        if tensor.name == ROPE_FACTORS
    ]
