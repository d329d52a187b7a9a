"""What counts against --disk-size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store.cli.disk_quota import require_room, used_bytes
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


def test_every_file_counts_once_whatever_its_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data").write_bytes(b"x" * 100)
    (tmp_path / "b").hardlink_to(tmp_path / "a" / "data")
    assert used_bytes(tmp_path) == 100
    assert used_bytes(tmp_path / "missing") == 0


def test_what_is_replaced_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "data").write_bytes(b"x" * 100)
    require_room(tmp_path, tmp_path / "old", 150, 150)
    with pytest.raises(InvalidRequestError, match="already holds 100 B of the 150 B"):
        require_room(tmp_path, tmp_path / "new", 51, 150)
    require_room(tmp_path, tmp_path / "new", 51, None)
