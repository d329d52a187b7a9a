"""`sllm-store rm`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def model(storage: Path, write_safetensors: Callable[..., object]) -> Path:
    write_safetensors(storage / "m")
    return storage / "m"


def test_it_asks_and_removes_the_whole_directory(
    model: Path, storage: Path, run: Callable[..., Any]
) -> None:
    done = run("rm", "m", "--storage-path", storage, stdin="y\n")
    assert done.code == 0
    assert done.out == "removed m\n"
    assert "Remove m (" in done.err
    assert list(storage.iterdir()) == []
    assert not model.exists()


def test_directories_that_only_its_name_needed_go_with_it(
    storage: Path, write_safetensors: Callable[..., object], run: Callable[..., Any]
) -> None:
    for name in ("org/group/a", "org/b"):
        write_safetensors(storage / name)
    assert run("rm", "org/group/a", "--storage-path", storage, "--yes").code == 0
    assert [path.name for path in (storage / "org").iterdir()] == ["b"]
    assert run("rm", storage / "org" / "b", "--storage-path", storage, "--yes").code == 0
    assert list(storage.iterdir()) == []


def test_the_parent_of_a_link_from_elsewhere_stays(
    storage: Path, tmp_path: Path, write_safetensors: Callable[..., object], run: Callable[..., Any]
) -> None:
    write_safetensors(storage / "org" / "m")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "link").symlink_to(storage / "org" / "m")
    assert run("rm", tmp_path / "there" / "link", "--storage-path", storage, "--yes").code == 0
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize(
    ("answer", "says"), [("n\n", "m was not removed"), ("", "pass --yes")], ids=["no", "nobody"]
)
def test_without_a_yes_nothing_is_removed(
    model: Path, run: Callable[..., Any], answer: str, says: str
) -> None:
    done = run("rm", "m", "--storage-path", model.parent, stdin=answer)
    assert done.code == 1
    assert says in done.err
    assert (model / "model.safetensors").exists()


def test_a_model_in_use_or_pinned_stays(
    model: Path,
    storage: Path,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
) -> None:
    store = start_store(storage)
    options = ("--address", store.address, "--yes")
    client = store.client()
    loaded = client.load("m")
    done = run("rm", "m", *options)
    assert (done.code, model.exists()) == (1, True)
    assert "m is in use (1 lease): close the programs that use it" in done.err
    del loaded
    client.set_pinned("m", pinned=True)
    done = run("rm", "m", *options)
    assert (done.code, model.exists()) == (1, True)
    assert "sllm-store unpin m" in done.err
    client.set_pinned("m", pinned=False)
    assert run("rm", "m", *options).code == 0
    assert client.list_models() == []
    assert client.status().pool_used_bytes == 0


def test_a_broken_checkpoint_can_be_removed(
    model: Path, storage: Path, run: Callable[..., Any]
) -> None:
    (model / "model.safetensors").write_bytes(b"junk")
    assert run("rm", "m", "--yes", "--storage-path", storage).code == 0
    assert not model.exists()


def test_a_directory_that_is_no_checkpoint_stays(storage: Path, run: Callable[..., Any]) -> None:
    (storage / "photos").mkdir()
    done = run("rm", "photos", "--yes", "--storage-path", storage)
    assert done.code == 1
    assert "holds no checkpoint" in done.err
    assert (storage / "photos").exists()


def test_a_checkpoint_around_another_stays(
    model: Path,
    storage: Path,
    write_safetensors: Callable[..., object],
    run: Callable[..., Any],
) -> None:
    write_safetensors(model / "inner")
    done = run("rm", "m", "--yes", "--storage-path", storage)
    assert done.code == 1
    assert "m holds another checkpoint, m/inner" in done.err
    assert model.exists()


def test_a_path_to_elsewhere_stays(
    storage: Path,
    tmp_path: Path,
    write_safetensors: Callable[..., object],
    run: Callable[..., Any],
) -> None:
    write_safetensors(tmp_path / "elsewhere")
    done = run("rm", tmp_path / "elsewhere", "--yes", "--storage-path", storage)
    assert done.code == 1
    assert "is not under the storage path" in done.err
    assert (tmp_path / "elsewhere").exists()


def test_of_a_link_only_the_link_is_removed(
    model: Path, storage: Path, run: Callable[..., Any]
) -> None:
    (storage / "link").symlink_to(model)
    assert run("rm", "link", "--yes", "--storage-path", storage).code == 0
    assert not (storage / "link").is_symlink()
    assert model.exists()


def test_of_a_single_file_only_the_file_is_removed(
    model: Path, storage: Path, run: Callable[..., Any]
) -> None:
    (model / "model.safetensors").rename(storage / "alone.safetensors")
    (storage / "note.txt").touch()
    assert run("rm", "alone.safetensors", "--yes", "--storage-path", storage).code == 0
    assert {path.name for path in storage.iterdir()} == {"m", "note.txt"}


def test_a_pinned_link_stays(
    model: Path,
    storage: Path,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
) -> None:
    (storage / "link").symlink_to(model)
    store = start_store(storage)
    store.client().set_pinned("link", pinned=True)
    done = run("rm", "link", "--address", store.address, "--yes")
    assert (done.code, (storage / "link").is_symlink()) == (1, True)
    assert "sllm-store unpin link" in done.err


def test_what_cannot_be_removed_is_said_with_why(
    model: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "a", None, "b")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    done = run("rm", "m", "--storage-path", model.parent, "--yes")
    assert done.code == 1
    assert done.err == f"error: cannot remove {model}: Read-only file system; it is as it was\n"
    assert model.exists()
