"""What is remembered holds for the same work in the same circumstances, and goes with its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels.warm_memory import WarmMemory

if TYPE_CHECKING:
    from pathlib import Path


def test_work_is_known_once_it_was_told_in_the_same_circumstances(tmp_path: Path) -> None:
    memory = WarmMemory(tmp_path / "cache", circumstances=["triton 1", "gpu"])
    assert not memory.knows("products")
    memory.remember("products")
    assert memory.knows("products")
    assert not memory.knows("others")
    assert WarmMemory(tmp_path / "cache", circumstances=["triton 1", "gpu"]).knows("products")
    assert not WarmMemory(tmp_path / "cache", circumstances=["triton 2", "gpu"]).knows("products")
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    assert not memory.knows("products")


def test_a_directory_that_cannot_be_written_is_nobody_s_trouble(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    memory = WarmMemory(tmp_path / "cache", circumstances=[])
    memory.remember("products")
    assert not memory.knows("products")
