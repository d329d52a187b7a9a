"""Speed is claimed only where benchmarks/results/ has it, and as it is there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from benchmarks.report import BEGIN, END, README, RESULTS, figures, with_figures
from tests.docs.documents import DOCUMENTS, without_blocks

RATE = re.compile(r"\d+(\.\d+)?\s*(GB/s|GiB/s)")


@pytest.fixture
def results() -> dict[str, Any]:
    """Two loaders in two states; one of them did not work in one."""
    return {
        "commit": "abc",
        "hardware": {"device": "GPU", "cores": 2, "kernel": "6.1-x", "torch": "2.13.0+cpu"},
        "versions": {"safetensors": "0.8.0"},
        "checkpoint": {"size_bytes": 1_500_000_000, "tensors": 3},
        "rows": [
            {"loader": "ours", "state": "page cache", "seconds": [1, 2], "gb_per_s_median": 2.04},
            {"loader": "ours", "state": "cold disk", "seconds": [1, 2], "gb_per_s_median": 1.0},
            {"loader": "safetensors", "state": "page cache", "error": "it has none"},
            {
                "loader": "safetensors",
                "state": "cold disk",
                "seconds": [1, 2],
                "gb_per_s_median": 3.0,
            },
        ],
    }


def test_the_table_has_every_loader_in_every_state_and_marks_the_best(
    results: dict[str, Any],
) -> None:
    assert figures(results).splitlines()[-4:] == [
        "| | a cold disk | the page cache |",
        "| --- | ---: | ---: |",
        "| ours | 1.0 | **2.0** |",
        "| safetensors 0.8.0 | **3.0** | |",
    ]


def test_the_table_says_how_its_figures_were_taken(results: dict[str, Any]) -> None:
    above = " ".join(figures(results).partition("\n\n")[0].split())
    for fact in ("median of 2 loads", "1.5 GB", "3 tensors", "one GPU (2 cores", "commit abc"):
        assert fact in above


def test_a_document_without_the_marks_is_not_touched() -> None:
    with pytest.raises(ValueError, match="0 times"):
        with_figures("nothing", "figures")
    assert with_figures(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\n\nnew\n\n{END} b"


def test_figures_in_the_readme_are_those_of_the_results() -> None:
    text = README.read_text()
    made = with_figures(text, figures(json.loads(RESULTS.read_text())))
    assert text == made, "run `python -m benchmarks.report` and commit what it writes"


def test_no_other_page_claims_a_rate() -> None:
    """docs/log.md tells what was tried, with its own conditions; it is no claim."""
    for path in DOCUMENTS:
        if path.name not in {"README.md", "log.md"}:
            assert not RATE.search(without_blocks(path)), f"{path.name} claims a speed"
