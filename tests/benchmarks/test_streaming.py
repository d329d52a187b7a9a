"""The streaming benchmark runs without a GPU, on shapes that take seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmarks import streaming
from sllm.runtime.quant.gguf_blocks import Q4_0

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("more", [[], ["--for-gpu"]])
def test_it_tells_what_was_streamed_and_what_that_was_bound_by(
    tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out.json"
    options = ["--small", "--layers", "4", "--passes", "1", "--device", "cpu", *more]
    streaming.main(["--work", str(tmp_path), "--out", str(out), *options])
    found = json.loads(out.read_text())
    layers, experts = (
        [row for row in found["rows"] if row["streamed"] == kind] for kind in ("layers", "experts")
    )
    assert [(case["tier"], case["batch"]) for case in layers] == [("disk", 1), ("disk", 16)]
    for case in (*layers, *experts):
        assert case["fraction_of_bound"] > 0
        assert case["tokens_per_s_of_whole"] > 0
    assert all(case["streamed_layers"] == 4 for case in layers)
    assert all(0 < case["hit_rate"] < 1 for case in experts)
    assert list(tmp_path.iterdir()) == [out], "it cleans up"


def test_layers_that_would_all_fit_the_buffers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        streaming.main(["--work", str(tmp_path), "--out", str(tmp_path / "o"), "--layers", "3"])


def test_random_blocks_are_small_numbers() -> None:
    raw = streaming.random_blocks(np.random.default_rng(0), (4, 64))
    values = Q4_0.of(torch.from_numpy(raw).flatten(), rows=4, columns=64).dequantize(torch.float32)
    assert float(values.abs().max()) < 0.05
