"""Publication: whole or not at all, with the files beside it kept, and no litter."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sllm_store.checkpoint import staging
from sllm_store.checkpoint.staging import Staging
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


def publish(target: Path, content: str, *, keep_files: bool = True) -> None:
    stage = Staging(target)
    try:
        (stage.directory / "tensor_index.json").write_text(content)
        stage.publish(keep_files=keep_files)
    finally:
        stage.close()


def tree(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_target_appears_whole_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "org/model"
    stage = Staging(target)
    (stage.directory / "tensor_index.json").write_text("new")
    assert not target.exists()
    stage.publish(keep_files=True)
    stage.close()
    assert tree(tmp_path) == {"org/model/tensor_index.json": "new"}
    assert list((tmp_path / "org").iterdir()) == [target]


def old_model(target: Path) -> None:
    (target / "tokenizer").mkdir(parents=True)
    for name in (
        "tensor.data_0",
        "tensor.data_1",
        "tensor_index.json",
        "checkpoint.json",
        "x.partial",
        "config.json",
        "tokenizer/vocab.txt",
        "tokenizer/tensor.data_0",
    ):
        (target / name).write_text("old")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_files_beside_the_checkpoint_are_kept_and_its_own_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_try_exchange", lambda *_: False)
    old_model(tmp_path / "m")
    publish(tmp_path / "m", "new")
    assert tree(tmp_path) == {
        "m/config.json": "old",
        "m/tensor_index.json": "new",
        "m/tokenizer/tensor.data_0": "old",
        "m/tokenizer/vocab.txt": "old",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_without_keep_files_only_the_new_ones_are_there(tmp_path: Path) -> None:
    old_model(tmp_path / "m")
    publish(tmp_path / "m", "new", keep_files=False)
    assert tree(tmp_path) == {"m/tensor_index.json": "new"}


def test_a_new_file_wins_over_a_kept_one(tmp_path: Path) -> None:
    old_model(tmp_path / "m")
    stage = Staging(tmp_path / "m")
    (stage.directory / "config.json").write_text("new")
    (stage.directory / "tokenizer").mkdir()
    (stage.directory / "tokenizer/vocab.txt").write_text("new")
    stage.publish(keep_files=True)
    stage.close()
    assert tree(tmp_path / "m") == {
        "config.json": "new",
        "tokenizer/tensor.data_0": "old",
        "tokenizer/vocab.txt": "new",
    }


def test_kept_links_stay_links_and_kept_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    target = tmp_path / "m"
    target.mkdir()
    (target / "config.json").write_text("kept")
    (target / "link").symlink_to("/nowhere")
    monkeypatch.setattr(os, "link", refuse)
    publish(target, "new")
    assert (target / "link").readlink().as_posix() == "/nowhere"
    assert (target / "config.json").read_text() == "kept"


def test_permissions_of_the_replaced_directory_stay(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir(mode=0o750)
    (tmp_path / "m/config.json").write_text("")
    publish(tmp_path / "m", "new")
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750


def test_where_a_link_leads_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    publish(tmp_path / "disk/m", "old")
    (tmp_path / "m").symlink_to("disk/m")
    publish(tmp_path / "m", "new")
    assert (tmp_path / "m").is_symlink()
    assert tree(tmp_path / "disk") == {"m/tensor_index.json": "new"}


def test_closing_without_publishing_leaves_nothing(tmp_path: Path) -> None:
    stage = Staging(tmp_path / "m")
    (stage.directory / "config.json").write_text("")
    stage.close()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_second_rename_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "m", "old")
    monkeypatch.setattr(staging, "_try_exchange", lambda *_: False)
    stage = Staging(tmp_path / "m")
    (stage.directory / "tensor_index.json").write_text("new")
    rename = type(tmp_path).rename

    def refuse(path: Path, target: Path) -> Path:
        if path == stage.directory and not target.exists():
            raise OSError(errno.EIO, "the disk is ill")
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(OSError, match="the disk is ill"):
        stage.publish(keep_files=True)
    stage.close()
    assert tree(tmp_path) == {"m/tensor_index.json": "old"}


def test_what_is_no_place_for_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InvalidRequestError, match="is a file"):
        Staging(tmp_path / "file")
    with pytest.raises(InvalidRequestError, match="cannot be a checkpoint"):
        Staging(type(tmp_path)("/"))
    (tmp_path / "here/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/below")
    for place in (tmp_path / "here", type(tmp_path)()):
        with pytest.raises(InvalidRequestError, match="holds the current directory"):
            Staging(place)
    publish(type(tmp_path)("m"), "new")
    assert tree(tmp_path / "here/below") == {"m/tensor_index.json": "new"}


DIE = """
import os, signal, sys
from pathlib import Path
from sllm_store.checkpoint.staging import Staging
stage = Staging(Path(sys.argv[1]))
(stage.directory / "tensor.data_0").write_bytes(b"x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_dead_processes_left_is_removed_and_what_living_ones_do_is_not(
    tmp_path: Path,
) -> None:
    living = Staging(tmp_path / "m")
    subprocess.run([sys.executable, "-c", DIE, str(tmp_path / "m")], check=False)
    (tmp_path / ".m.partial-1-no-lock").mkdir()
    (tmp_path / ".m.partial-2-no-directory.lock").write_text("")
    (tmp_path / ".other.partial-3").mkdir()
    assert len(list(tmp_path.iterdir())) == 7
    publish(tmp_path / "m", "new")
    names = {path.name for path in tmp_path.iterdir()}
    own = living.directory.name
    assert names == {"m", own, f"{own}.lock", ".other.partial-3"}
    living.publish(keep_files=True)
    living.close()
    assert {path.name for path in tmp_path.iterdir()} == {"m", ".other.partial-3"}


def publish_many(target: Path, content: str) -> None:
    for _ in range(20):
        publish(target, content)


def test_saves_of_one_name_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=publish_many, args=(tmp_path / "m", content)) for content in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert tree(tmp_path)["m/tensor_index.json"] in ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
