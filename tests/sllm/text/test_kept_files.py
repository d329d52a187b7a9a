"""A GGUF's text files are made once, and again once the file or what was kept of it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sllm.text import kept_files
from sllm.text.kept_files import KEPT, read_kept_files
from sllm_store.convert.text_files import read_text_files
from sllm_store.errors import StoreError


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were made anew."""
    found: list[Path] = []

    def read(path: Path) -> dict[str, str]:
        found.append(path)
        return read_text_files(path)

    monkeypatch.setattr(kept_files, "read_text_files", read)
    return found


@pytest.fixture
def gguf(smollm2: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    shutil.copyfile(smollm2, path)
    return path


def _kept(environ: dict[str, str]) -> list[Path]:
    return list((Path(environ["XDG_CACHE_HOME"]) / "serverless-llm" / "text").glob("*"))


def test_a_vocabulary_is_made_once(gguf: Path, tmp_path: Path, made: list[Path]) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = read_kept_files(gguf, environ)
    assert first == read_text_files(gguf)
    assert read_kept_files(gguf, environ) == first
    assert made == [gguf]
    assert len(_kept(environ)) == 1
    gguf.touch()
    assert read_kept_files(gguf, environ) == first
    assert made == [gguf, gguf]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mark": 1, "files": {}}'])
def test_what_is_damaged_is_made_again(
    text: str, gguf: Path, tmp_path: Path, made: list[Path]
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = read_kept_files(gguf, environ)
    (file,) = _kept(environ)
    file.write_text(text)
    assert read_kept_files(gguf, environ) == first
    assert len(made) == 2
    assert json.loads(file.read_text())["files"] == first


def test_no_more_than_a_few_are_kept(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_files, "read_text_files", lambda _path: {"tokenizer.json": "{}"})
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for turn in range(KEPT + 3):
        path = gguf.with_name(f"{turn}.gguf")
        path.write_bytes(b"x")
        read_kept_files(path, environ)
    assert len(_kept(environ)) == KEPT


def test_a_directory_is_read_as_it_is(tmp_path: Path, made: list[Path]) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")
    assert read_kept_files(model, environ) == {"tokenizer.json": "{}"}
    assert made == [model]
    assert not _kept(environ)
    with pytest.raises(StoreError):
        read_kept_files(tmp_path / "absent", environ)


def test_where_nothing_can_be_kept_it_is_made_all_the_same(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "serverless-llm").write_text("no directory")
    assert read_kept_files(gguf, {"XDG_CACHE_HOME": str(tmp_path)}) == read_text_files(gguf)
