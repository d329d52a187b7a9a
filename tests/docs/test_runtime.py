"""The example of the runtime's page runs, and answers as the library does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.docs.documents import DOCS, read_blocks
from tests.sllm.runtime.tiny_models import VOCABULARY, make_model, random_tokens

if TYPE_CHECKING:
    from pathlib import Path


def test_the_example_answers(tmp_path: Path) -> None:
    make_model("llama").theirs.save_pretrained(tmp_path)
    (block,) = (b for b in read_blocks(DOCS / "runtime.md") if b.language == "python")
    names: dict[str, Any] = {}
    exec(compile(block.text, block.where, "exec"), names)
    whole = names["answer"](tmp_path, random_tokens(5))
    assert len(whole) == 64
    assert all(0 <= token < VOCABULARY for token in whole)
    assert names["answer"](tmp_path, random_tokens(5), budget_bytes=90_000) == whole
