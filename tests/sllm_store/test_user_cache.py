"""What is kept for later processes is whole, or as it was before."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from sllm.library.smollm2 import default_cache
from sllm_store.user_cache import keep_text, user_cache


def test_the_directory_is_where_the_environment_says() -> None:
    assert user_cache({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/serverless-llm")
    assert user_cache({"HOME": "/h"}) == Path("/h/.cache/serverless-llm")
    assert user_cache({"HOME": ""}) == Path("/.cache/serverless-llm")


def test_a_user_whose_environment_names_no_home_has_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOME")
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert user_cache({}) == home / ".cache" / "serverless-llm"
    assert default_cache({}) == user_cache({})


def test_a_user_without_any_home_has_the_root_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    assert user_cache({}) == Path("/.cache/serverless-llm")


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
