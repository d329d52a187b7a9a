"""A second process is timed from nothing to a token, stage by stage, also without a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import warm_start
from benchmarks.targets import verdicts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("laid_out", [[], ["--for-gpu"]])
def test_stages_of_each_process_are_told(tmp_path: Path, laid_out: list[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--small", "--runs", "1", "--device", "cpu", *laid_out]
    warm_start.main(["--work", str(tmp_path), "--out", str(out), *options])
    found = json.loads(out.read_text())
    kinds = [row["process"] for row in found["rows"]]
    assert kinds == ["first process", "second process"]
    for row in found["rows"]:
        stages = row["stages"]
        assert {"imports", "open: checkpoint", "open: weights", "first token"} <= set(stages)
        assert 0 < stages["open: weights"] < stages["open"] < row["first_token_s"]
    (judged,) = verdicts([found])
    assert judged.column.startswith("warm start of a second process")
    assert judged.measured.startswith(f"{found['rows'][1]['first_token_s']:.3g} s")
    assert list(tmp_path.iterdir()) == [out], "it cleans up"
