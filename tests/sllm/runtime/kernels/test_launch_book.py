"""What was found fastest is found again, and a damaged cache is an empty one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.runtime.kernels.launch_book import LaunchBook
from sllm.runtime.kernels.launches import GemmLaunch, GemvLaunch

if TYPE_CHECKING:
    from pathlib import Path


def test_a_launch_is_remembered_by_later_processes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "book.json"
    first = LaunchBook(path)
    assert first.find(GemvLaunch, "one") is None
    first.remember("one", GemvLaunch(rows=4, warps=8))
    second = LaunchBook(path)
    first.remember("two", GemmLaunch(shares=3))
    second.remember("three", GemvLaunch(rows=1, warps=1))
    last = LaunchBook(path)
    assert last.find(GemvLaunch, "one") == GemvLaunch(rows=4, warps=8)
    assert last.find(GemmLaunch, "two") == GemmLaunch(shares=3)
    assert last.find(GemvLaunch, "three") == GemvLaunch(rows=1, warps=1)
    assert [file.name for file in path.parent.iterdir()] == ["book.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"one": 3}', '{"one": {"rows": 1, "no": 2}}'])
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "book.json"
    path.write_text(content)
    book = LaunchBook(path)
    assert book.find(GemvLaunch, "one") is None
    book.remember("one", GemvLaunch(rows=2, warps=2))
    assert LaunchBook(path).find(GemvLaunch, "one") == GemvLaunch(rows=2, warps=2)
