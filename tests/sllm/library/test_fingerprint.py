"""A fingerprint differs where checkpoints do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.library.fingerprint import fingerprint

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
