"""A checkpoint knows whether its files are still the ones that were opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.checkpoint_memory import Memory


def save(path: Path, memory: Memory, content: bytes) -> None:
    with CheckpointWriter(path) as writer:
        writer.write([memory.tensor("a", content)])


def overwrite(data: Path) -> None:
    data.write_bytes(b"x" * data.stat().st_size)
    status = data.stat()
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(data: Path) -> None:
    status = data.stat()
    content = data.read_bytes()
    # Both exist at once, so the inode cannot be the same.
    data.rename(data.with_name("old"))
    data.write_bytes(content)
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.write_bytes(data.read_bytes() + b"x"), "changed since"),
        (overwrite, "changed since"),
        (replace, "changed since"),
        (lambda data: data.unlink(), "gone since"),
    ],
    ids=["longer", "overwritten", "replaced", "removed"],
)
def test_a_changed_file_is_noticed(
    tmp_path: Path, memory: Memory, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path / "m", memory, b"abcd")
    checkpoint = open_checkpoint(tmp_path / "m")
    checkpoint.require_unchanged()
    damage(tmp_path / "m/tensor.data_0")
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        checkpoint.require_unchanged()
    assert "tensor.data_0" in str(caught.value)


def test_a_save_of_the_same_bytes_is_another_checkpoint(tmp_path: Path, memory: Memory) -> None:
    save(tmp_path / "m", memory, b"abcd")
    checkpoint = open_checkpoint(tmp_path / "m")
    save(tmp_path / "m", memory, b"abcd")
    with pytest.raises(InvalidCheckpointError, match="changed since it was opened; open again"):
        checkpoint.require_unchanged()


def test_sizes_count_shared_bytes_once(tmp_path: Path, memory: Memory) -> None:
    memory.storage("base", bytes(64))
    with CheckpointWriter(tmp_path / "m") as writer:
        tied = [memory.view(name, "float32", (16,), storage="base") for name in "ab"]
        writer.write(tied, buffers=[memory.view("c", "uint8", (), storage="base", offset=5)])
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.size_bytes == 64
    assert list(checkpoint.all_tensors()) == ["a", "b", "c"]
    assert checkpoint.buffers["c"].span_bytes() == 6
    assert checkpoint.directory == tmp_path / "m"
