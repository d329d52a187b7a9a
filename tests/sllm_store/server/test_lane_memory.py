"""What loads taught survives a server, and a damaged record is no record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sllm_store.server.lane_fit import Sample
from sllm_store.server.lane_memory import LaneMemory, lane_memory

if TYPE_CHECKING:
    from pathlib import Path

LANES = {"disk>cpu": (Sample(3, 1000, 0.25), Sample(4, 2000, 0.5)), "host>gpu": ()}


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    memory = LaneMemory(tmp_path / "deep" / "loads.json")
    assert memory.recall() == {}
    memory.keep(LANES)
    assert LaneMemory(memory.path).recall() == LANES
    assert [path.name for path in memory.path.parent.iterdir()] == ["loads.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"version": 2, "lanes": {}}',
        '{"version": 1, "lanes": {"a": [[1, 2]]}}',
        '{"version": 1, "lanes": {"a": [[1, 2, -1]]}}',
        '{"version": 1, "lanes": {"a": [[1, 2, NaN]]}}',
        '{"version": 1, "lanes": {"a": [[1, 2, 1e999]]}}',
        '{"version": 1, "lanes": {"a": [["x", 2, 1]]}}',
        '{"version": 1, "lanes": {"a": 7}}',
        '{"version": 1, "lanes": ' + "[" * 100_000,
    ],
)
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "loads.json"
    path.write_text(text)
    assert LaneMemory(path).recall() == {}


def test_a_record_with_too_many_lanes_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    lanes: dict[str, list[object]] = {f"disk>{number}": [] for number in range(1000)}
    path.write_text(json.dumps({"version": 1, "lanes": lanes}))
    assert LaneMemory(path).recall() == {}


def test_a_directory_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    LaneMemory(tmp_path / "file" / "loads.json").keep(LANES)


def test_there_is_one_record_for_each_disk_under_the_cache_directory(tmp_path: Path) -> None:
    memory = lane_memory(tmp_path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert memory.path.parent == tmp_path / "cache" / "serverless-llm" / "loads"
    same = lane_memory(tmp_path, {"HOME": str(tmp_path)})
    assert same.path == tmp_path / ".cache" / "serverless-llm" / "loads" / memory.path.name
