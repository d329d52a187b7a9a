"""Results of a benchmark, as its JSON has them."""

from __future__ import annotations

from typing import Any

import pytest


def row(loader: str, state: str, seconds: list[float]) -> dict[str, Any]:
    """A row of a checkpoint of 1.5 GB."""
    return {
        "checkpoint": "llama-8b",
        "loader": loader,
        "state": state,
        "seconds": seconds,
        "gb_per_s_first": 1.5 / seconds[0],
        "gb_per_s_median": 1.5 / sorted(seconds)[len(seconds) // 2],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """Two loaders in two states; one of them did not work in one."""
    return {
        "commit": "abc",
        "command": "python -m benchmarks.load_time",
        "hardware": {"device": "GPU", "cores": 2, "kernel": "6.1-x", "torch": "2.13.0+cpu"},
        "versions": {"safetensors": "0.8.0"},
        "checkpoints": {"llama-8b": {"size_bytes": 1_500_000_000, "tensors": 3}},
        "limits": {"disk_gb_per_s": 4.0, "link_gb_per_s": 50.0},
        "rows": [
            row("safetensors", "cold disk", [0.5, 0.25]),
            row("ours, in-process", "page cache", [1.5, 0.75]),
            row("ours, in-process", "cold disk", [1.5, 1.5]) | {"disk_gb_per_s": [4.0, 2.0]},
            {
                "checkpoint": "llama-8b",
                "loader": "safetensors",
                "state": "page cache",
                "error": "it has none",
            },
        ],
    }
