"""Names and formats: what is at a path is found, and no name leads out of the root."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sllm_store.checkpoint import indexed
from sllm_store.checkpoint.layout import plan_arena, plan_image
from sllm_store.checkpoint.reader import (
    guess_arena_bytes,
    list_checkpoints,
    name_under,
    open_checkpoint,
    resolve,
)
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    ReadError,
    StoreError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from tests.checkpoint_memory import Memory

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
EMPTY_GGUF = b"GGUF\x03\0\0\0" + bytes(16)


def save(path: Path, memory: Memory, content: bytes = b"abcd") -> None:
    with CheckpointWriter(path) as writer:
        writer.write([memory.tensor("a", content)])


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = EMPTY_GGUF if name.endswith(".gguf") else EMPTY_SAFETENSORS
        (directory / name).write_bytes(content)
    return directory


def test_ours_wins_over_safetensors_and_that_over_gguf(tmp_path: Path, memory: Memory) -> None:
    fill(tmp_path, "m.gguf")
    assert open_checkpoint(tmp_path).format == "gguf"
    fill(tmp_path, "model.safetensors")
    assert open_checkpoint(tmp_path).format == "safetensors"
    save(tmp_path / "x", memory)
    for path in (tmp_path / "x").iterdir():
        path.rename(tmp_path / path.name)
    assert open_checkpoint(tmp_path).format == "sllm"


def test_a_file_is_opened_by_its_own_name(tmp_path: Path) -> None:
    fill(tmp_path, "m.gguf", "a.safetensors")
    assert open_checkpoint(tmp_path / "m.gguf").format == "gguf"
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.format, checkpoint.directory) == ("safetensors", tmp_path)


def test_what_is_not_there_or_no_checkpoint_is_told_with_what_was_looked_for(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    looked_for = r"looked for tensor_index\.json, \*\.safetensors and \*\.gguf"
    with pytest.raises(CheckpointNotFoundError, match=looked_for):
        open_checkpoint(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=looked_for):
        open_checkpoint(tmp_path / "weights.bin")


def test_a_model_in_hugging_face_s_cache_is_read_by_its_snapshot(tmp_path: Path) -> None:
    model, commit = tmp_path / "models--org--tiny", "a" * 40
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / commit).mkdir(parents=True)
    save_file({"a": torch.ones(3)}, model / "blobs" / "1234")
    snapshot = model / "snapshots" / commit
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert open_checkpoint(snapshot).format == "safetensors"
    with pytest.raises(CheckpointNotFoundError, match=f"for example {snapshot}"):
        open_checkpoint(model)


def test_partitions_without_an_index_are_an_unfinished_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tensor.data_0").write_bytes(b"")
    with pytest.raises(InvalidCheckpointError, match=r"tensor_index\.json: missing beside"):
        open_checkpoint(tmp_path)


def test_of_several_gguf_models_one_must_be_named(tmp_path: Path) -> None:
    fill(tmp_path, "q4.gguf", "q8.gguf")
    with pytest.raises(InvalidCheckpointError, match=r"2 GGUF files.*give the path of .*q4\.gguf"):
        open_checkpoint(tmp_path)


def test_a_directory_without_permission_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    tmp_path.chmod(0)
    with pytest.raises((CheckpointNotFoundError, ReadError), match="cannot read"):
        open_checkpoint(tmp_path)
    tmp_path.chmod(0o700)


def test_a_checkpoint_replaced_while_it_is_opened_is_the_old_or_the_new_one(
    tmp_path: Path, memory: Memory
) -> None:
    save(tmp_path / "m", memory, bytes(1))
    done = threading.Event()

    def replace() -> None:
        try:
            for number in range(2, 60):
                save(tmp_path / "m", memory, bytes(number))
        finally:
            done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    opened = 0
    while not done.is_set():
        checkpoint = open_checkpoint(tmp_path / "m")
        assert checkpoint.size_bytes == checkpoint.tensors["a"].shape[0]
        opened += 1
    thread.join()
    assert opened
    assert not verify_checkpoint(open_checkpoint(tmp_path / "m")).problems


@pytest.mark.parametrize(
    "error", [None, CheckpointNotFoundError, InvalidCheckpointError, ReadError]
)
def test_what_was_opened_before_two_saves_is_opened_again(
    tmp_path: Path,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    error: type[StoreError] | None,
) -> None:
    """The second save's directory has the number of the first one's, where numbers come back."""
    save(tmp_path / "m", memory, bytes(1))
    real = indexed.open_indexed

    def slow(directory: Path, *, root: Path | None) -> Checkpoint:
        monkeypatch.undo()
        checkpoint = real(directory, root=root)
        for number in (2, 3):
            save(directory, memory, bytes(number))
        if error is not None:
            raise error("read while it was replaced")
        return checkpoint

    monkeypatch.setattr(indexed, "open_indexed", slow)
    assert open_checkpoint(tmp_path / "m").size_bytes == 3


def test_every_checkpoint_below_a_root_is_listed_by_its_name(
    tmp_path: Path, memory: Memory
) -> None:
    root = tmp_path / "root"
    save(root / "org/ours", memory)
    save(root / "vllm/m/rank_0", memory)
    save(root / "vllm/m/rank_1", memory)
    fill(root / "hub", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    fill(root / "one", "m.gguf")
    fill(root / "two", "q4.gguf", "q8.gguf", "x-00001-of-00002.gguf", "x-00002-of-00002.gguf")
    fill(root / "series", "x-00001-of-00002.gguf", "x-00002-of-00002.gguf")
    fill(root, "single.safetensors", "single.gguf", "readme.txt")
    fill(root / ".cache", "hidden.gguf")
    fill(root / ".ours.partial-1-ab", "tensor_index.json")
    fill(root / "empty")
    names = list(list_checkpoints(root))
    assert sorted(names) == [
        "hub",
        "one",
        "org/ours",
        "series",
        "single.gguf",
        "single.safetensors",
        "two/q4.gguf",
        "two/q8.gguf",
        "two/x-00001-of-00002.gguf",
        "vllm/m/rank_0",
        "vllm/m/rank_1",
    ]
    assert all(resolve(root, name).exists() for name in names)


def test_links_are_listed_inside_the_root_and_never_out_of_it(
    tmp_path: Path, memory: Memory
) -> None:
    root = tmp_path / "root"
    save(root / "real", memory)
    save(tmp_path / "outside", memory)
    (root / "inside").symlink_to("real")
    (root / "outside").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(".")
    (root / "self").symlink_to("self")
    (root / "gone").symlink_to("nowhere")
    fill(root / "linked")
    (root / "linked/model.safetensors").symlink_to(tmp_path / "outside/tensor.data_0")
    assert sorted(list_checkpoints(root)) == ["inside", "real"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "/etc/passwd", "../x", "a/../../x", "a/..", "..", "a\0b", ".m.partial-1-ab/x"],
)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InvalidRequestError):
        resolve(tmp_path, name)


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root / "real", "m.gguf")
    fill(tmp_path / "outside", "m.gguf")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to("real")
    for name in ("out", "out/m.gguf"):
        with pytest.raises(InvalidRequestError, match="is a link to outside of"):
            resolve(root, name)
    assert resolve(root, "in") == root.resolve() / "in"
    assert resolve(root, "in/./m.gguf").read_bytes() == EMPTY_GGUF


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "loop", "x" * 5000, "\ud800", "file/x"])
def test_a_name_of_nothing_is_not_found_in_the_root(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint") as caught:
        resolve(tmp_path, name)
    assert str(tmp_path) in str(caught.value)


def test_a_name_is_relative_and_of_something_inside(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    (root / "link").symlink_to("m")
    (tmp_path / "outside").symlink_to(root)
    assert name_under(root, root / "a" / "b") == "a/b"
    assert name_under(root, root / "link") == "link"
    assert name_under(root, tmp_path / "outside" / "m") == "m"
    assert name_under(tmp_path / "outside", root / "m") == "m"
    assert name_under(root, root) is None
    assert name_under(root, tmp_path / "b") is None
    assert name_under(root, root / ".." / "b") is None


def test_what_arenas_will_take_is_guessed_of_published_files_alone(
    tmp_path: Path, memory: Memory
) -> None:
    published = fill(tmp_path / "published")
    save_file({f"w{n}": torch.zeros(1000 * 64) for n in range(9)}, published / "model.safetensors")
    checkpoint = open_checkpoint(published)
    arena = plan_arena(checkpoint, plan_image(checkpoint, 32 << 20), range(9))
    assert 0 < guess_arena_bytes(published) - arena.size_bytes < 1000
    save(tmp_path / "ours", memory)
    for other in (tmp_path / "ours", tmp_path / "nowhere", fill(tmp_path / "gguf", "m.gguf")):
        assert guess_arena_bytes(other) == 0
    save(published, memory)  # In its place.
    assert guess_arena_bytes(published) == 0
