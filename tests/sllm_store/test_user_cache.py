"""What is kept for later processes is whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from sllm_store.user_cache import keep_text, user_cache


def test_the_directory_is_where_the_environment_says() -> None:
    assert user_cache({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/serverless-llm")
    assert user_cache({"HOME": "/h"}) == Path("/h/.cache/serverless-llm")


def test_a_file_is_written_with_its_directory_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    keep_text(path, "één")
    keep_text(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    keep_text(path, "before")

    def refuse(_self: Path, _target: Path) -> Path:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no room"):
        keep_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
