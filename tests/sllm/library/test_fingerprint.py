"""A fingerprint differs where checkpoints do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.library.fingerprint import fingerprint, small_files

if TYPE_CHECKING:
    from pathlib import Path


def test_sizes_beginnings_and_ends_count(tmp_path: Path) -> None:
    base = b"a" * (3 << 20)
    variants = [base, base[:-1], b"b" + base[1:], base[:-1] + b"b", b""]
    found = set()
    for data in variants:
        (tmp_path / "x").write_bytes(data)
        found.add(fingerprint([tmp_path / "x"]))
    assert len(found) == len(variants)
    (tmp_path / "x").write_bytes(base)
    assert fingerprint([tmp_path / "x"]) in found


def test_what_is_beside_weights_counts_where_it_changes_answers(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "README.md", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in small_files(tmp_path)] == ["config.json", "tokenizer.json"]
    assert small_files(tmp_path / "model.safetensors") == []
