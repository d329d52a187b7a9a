"""The decoding benchmark runs without a GPU, on shapes that take seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import decode_gpu

if TYPE_CHECKING:
    from pathlib import Path


def test_it_tells_what_a_step_took_and_what_bounds_it(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    decode_gpu.main(["--small", "--out", str(out), "--commit", "none"])
    found = json.loads(out.read_text())
    assert [(row["format"], row["batch"]) for row in found["rows"]] == [
        ("Q4_0", 1),
        ("Q4_0", 3),
        ("bf16", 1),
        ("bf16", 3),
    ]
    assert found["limits"]["copy_gb_s"] > 0
    for row in found["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["drawing_tokens_per_s"] > 0
        taken_s = row["batch"] / row["engine_tokens_per_s"]
        assert row["engine_of_copy"] == pytest.approx(row["bound_ms"] / 1e3 / taken_s)
        assert 0 < row["asked_ms"] <= row["step_ms"]
    quantised, _, floats, _ = (row["bytes"] for row in found["rows"])
    assert quantised < floats
