"""Bytes appear whole, and go when nothing uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import LibraryError
from sllm.library import storage
from sllm.library.storage import Storage, place, write_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_staged_directory_is_published_once(tmp_path: Path) -> None:
    files = Storage(tmp_path)
    for text in ("first", "other"):
        with files.stage() as staged:
            (staged / "a").write_text(text)
            with files.lock():
                files.publish(staged, "id")
    assert (tmp_path / "files" / "id" / "a").read_text() == "first"
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_sweep_spares_what_is_used_and_what_is_on_its_way(tmp_path: Path) -> None:
    files = Storage(tmp_path)
    for name in ("kept", "unused"):
        (tmp_path / "files" / name).mkdir(parents=True)
    (tmp_path / "staging" / "of-the-dead").mkdir(parents=True)
    with files.stage() as staged, files.lock():
        files.sweep({"kept"})
        assert list((tmp_path / "staging").iterdir()) == [staged]
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["kept"]


def test_a_lock_that_is_not_given_back_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCK_TIMEOUT_S", 0.05)
    with (
        Storage(tmp_path).lock(),
        pytest.raises(LibraryError, match="locked by another process"),
        Storage(tmp_path).lock(),
    ):
        pass


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_file(path, b"old")
    path.parent.chmod(0o755)
    (tmp_path / "a" / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "a" / "directory", b"new")
    assert sorted(one.name for one in path.parent.iterdir()) == ["b", "directory"]


def test_a_placed_file_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("x")
    (tmp_path / "link").symlink_to(source)
    place(tmp_path / "link", tmp_path / "a" / "hard")
    assert (tmp_path / "a" / "hard").samefile(source)
    assert not (tmp_path / "a" / "hard").is_symlink()

    def refuse(path: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(type(source), "hardlink_to", refuse)
    place(source, tmp_path / "a" / "soft")
    assert (tmp_path / "a" / "soft").readlink() == source
