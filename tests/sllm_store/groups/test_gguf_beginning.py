"""A GGUF's beginning says itself whether it is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store.errors import InvalidCheckpointError
from sllm_store.groups.gguf_beginning import ranges_that_describe

if TYPE_CHECKING:
    from pathlib import Path


def test_a_header_that_is_there_is_enough(smollm2: Path, tmp_path: Path) -> None:
    size_bytes = smollm2.stat().st_size
    beginning = tmp_path / "beginning"
    with smollm2.open("rb") as file:
        beginning.write_bytes(file.read(4 << 20))
    assert ranges_that_describe(beginning, size_bytes) == []
    for kept in (0, 3, 20, 1 << 20):
        with smollm2.open("rb") as file:
            beginning.write_bytes(file.read(kept))
        assert ranges_that_describe(beginning, size_bytes) is None


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"<html>")
    with pytest.raises(InvalidCheckpointError, match="does not begin with 'GGUF'"):
        ranges_that_describe(tmp_path / "page", 1 << 30)
